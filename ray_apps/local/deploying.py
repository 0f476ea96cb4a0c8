"""Connects to the Ray head, and deploys the gateway with MLflow's protocol, ticker and a predictor for each model."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from toque.ray_apps.deployment.applications import Layout, applications, placements_of
from toque.ray_apps.local import ray_head
from toque.ray_apps.local.errors import LocalError
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.loopback import stay_on_loopback

if TYPE_CHECKING:
    from toque.functions.placement import Placement


def connect(running: RunningPlatform) -> str:
    """Connect this process to the head; returns the cluster's id in hex.

    The process stays connected, and its environment names this platform from now on, so that functions called here
    use it. Raises: LocalError if the process is connected to another cluster.
    """
    os.environ.update(ray_head.platform_environment(running) | ray_head.serve_environment(running))
    import ray  # late: it must see the environment above

    if ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
        if address == running.ray_address:
            return _cluster_id(running)
        raise LocalError(f"this process uses Ray at {address}; call ray.shutdown() before `up`")
    if running.settings.on_loopback:
        stay_on_loopback()
    ray.init(
        address=running.ray_address,
        namespace="toque",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return _cluster_id(running)


def deploy(running: RunningPlatform) -> None:
    """Start Serve on the platform's address, and deploy every application; returns when all answer."""
    from ray import serve  # late: as above
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host=running.settings.host, port=running.ports.http),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    grpc = {"url": running.url, "host": running.settings.host, "port": running.ports.grpc}
    doors = running.settings.generative
    layout = Layout(
        gateway={"with_mlflow": True},
        mlflow=None,
        grpc=grpc,
        streams={} if running.streams else None,
        generative={"num_replicas": doors, "num_cpus": 0} if doors else None,
    )
    serve.run_many([each.target() for each in applications(placements(running), layout)])


def deploy_models(running: RunningPlatform, added: Collection[str]) -> None:
    """Serve further models of a running platform; gateway and ticker are replaced, since they hold the project as it was.

    added: their qualified names. Returns when all answer.
    """
    from ray import serve  # late: as above

    new = {name: place for name, place in placements(running).items() if name in added}
    layout = Layout(gateway={"with_mlflow": True}, mlflow=None)
    serve.run_many([each.target() for each in applications(new, layout)])


def models_of(project: str | None) -> tuple[str, ...]:
    """List the models that the users' projects declare, by qualified name. project: as TOQUE_PROJECT says."""
    return tuple(placements_of(project))


def placements(running: RunningPlatform) -> dict[str, Placement]:
    """Read from the projects where each model of a platform is served, by qualified name."""
    declared = placements_of(running.settings.project) if running.models else {}
    return {name: declared[name] for name in running.models}


def _cluster_id(running: RunningPlatform) -> str:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray has no public name for it

    found: str = GcsClient(address=running.ray_address).cluster_id.hex()
    return found
