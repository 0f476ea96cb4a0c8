"""Connects to the head and deploys gateway, ticker and a predictor for each model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray_apps.local import ray_head
from ray_apps.local.errors import LocalError
from ray_apps.local.running import Running

if TYPE_CHECKING:
    from ray.serve import RunTarget


def connect(running: Running) -> str:
    """Connect this process to the head; returns the cluster's id in hex.

    It stays connected, and its environment names this platform from now on, so that functions it calls use it.
    Raises: LocalError if it is connected to another cluster.
    """
    os.environ.update(ray_head.platform_environment(running) | ray_head.serve_environment(running))
    import ray  # late: it must see the environment above

    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if there == running.ray_address:
            return _cluster_id(running)
        raise LocalError(f"this process uses Ray at {there}; call ray.shutdown() before `up`")
    ray.init(
        address=running.ray_address,
        namespace="toque",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return _cluster_id(running)


def deploy(running: Running) -> None:
    """Start Serve with its doors on loopback, and every application; returns when all answer."""
    from ray import serve  # late: as above
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host=running.settings.host, port=running.ports.http),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    serve.run_many(targets(running.models))


def targets(models: tuple[str, ...]) -> list[RunTarget]:
    """What is deployed: one application each for the gateway, the ticker and every model."""
    from ray.serve import RunTarget  # late: as above

    from ray_apps import gateway, predictor, ticker

    # No CPU is reserved: on a small machine training would find none left.
    options = predictor.PredictorOptions.from_environment(os.environ, num_cpus=0)
    doors: list[tuple[str, str | None, Any]] = [
        ("gateway", "/", gateway.application()),
        ("ticker", None, ticker.application()),
    ]
    counters = [
        (predictor.app_name(name), predictor.route_prefix(name), predictor.application(name, options))
        for name in models
    ]
    return [
        RunTarget(target=target, name=name, route_prefix=prefix)
        for name, prefix, target in (*doors, *counters)
    ]


def models_of(project: str | None) -> tuple[str, ...]:
    """The models the user's project declares."""
    if project is None:
        return ()
    from functions.project import (
        load_project,  # late: it imports the user's code, and only where there is some
    )

    return tuple(load_project(project).models)


def _cluster_id(running: Running) -> str:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray has no public name for it

    found: str = GcsClient(address=running.ray_address).cluster_id.hex()
    return found
