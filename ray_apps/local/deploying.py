"""Connects to the head and deploys gateway, MLflow's protocol, ticker and a predictor for each model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray_apps.local import ray_head
from ray_apps.local.errors import LocalError
from ray_apps.local.running import Running

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import RunTarget

    from functions.placement import Placement
    from ray_apps.predictor import PredictorOptions


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
    serve.run_many([*targets(placements(running)), grpc_target(running)])


def targets(models: Mapping[str, Placement]) -> list[RunTarget]:
    """What is deployed: gateway, MLflow's protocol, ticker, and every model where it is placed."""
    from ray.serve import RunTarget  # late: as above

    from ray_apps import gateway, mlflow, ticker

    doors: list[tuple[str, str | None, Any]] = [
        ("gateway", "/", gateway.application()),
        ("mlflow", mlflow.ROUTE_PREFIX, mlflow.application()),
        ("ticker", None, ticker.application()),
    ]
    return [
        RunTarget(target=target, name=name, route_prefix=prefix)
        for name, prefix, target in (*doors, *_counters(models))
    ]


def _counters(models: Mapping[str, Placement]) -> list[tuple[str, str | None, Any]]:
    """Name, route prefix and application of every predictor, and of the pool if a model is placed there."""
    from ray_apps import predictor  # late: as above

    # No CPU is reserved: on a small machine training would find none left.
    options = predictor.PredictorOptions.from_environment(os.environ, num_cpus=0)
    found: list[tuple[str, str | None, Any]] = [
        (
            predictor.app_name(name),
            predictor.route_prefix(name),
            predictor.application(name, _placed(options, place)),
        )
        for name, place in models.items()
        if not place.pool
    ]
    if any(place.pool for place in models.values()):
        pool = predictor.PoolOptions.from_environment(os.environ, num_cpus=0)
        found.append((predictor.POOL_APP, predictor.POOL_PREFIX, predictor.pool_application(pool)))
    return found


def _placed(options: PredictorOptions, place: Placement) -> PredictorOptions:
    if place.dedicated:
        from ray_apps.predictor import DedicatedOptions  # late: as above

        own = place.model_dump(include=set(DedicatedOptions.model_fields))
        return options.model_copy(update={"dedicated": DedicatedOptions(**own)})
    if place.min_replicas == place.max_replicas:
        return options.model_copy(update={"num_replicas": place.max_replicas})
    return options.model_copy(
        update=place.model_dump(include={"min_replicas", "max_replicas", "target_latency_ms"})
    )


def grpc_target(running: Running) -> RunTarget:
    """The gRPC door to all models."""
    from ray.serve import RunTarget  # late: as above

    from ray_apps.predictor import rpc

    settings = running.settings
    options = rpc.FrontOptions(url=running.url, host=settings.host, port=running.ports.grpc)
    return RunTarget(target=rpc.grpc_application(options), name=rpc.GRPC_APP, route_prefix=None)


def models_of(project: str | None) -> tuple[str, ...]:
    """The models the user's project declares."""
    if project is None:
        return ()
    from functions.project import (
        load_project,  # late: it imports the user's code, and only where there is some
    )

    return tuple(load_project(project).models)


def placements(running: Running) -> dict[str, Placement]:
    """Where each model of a platform is served, as its project says."""
    from functions.project import load_project  # late: as above

    if running.settings.project is None or not running.models:
        return {}
    project = load_project(running.settings.project)
    return {name: project.model(name).placement for name in running.models}


def _cluster_id(running: Running) -> str:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray has no public name for it

    found: str = GcsClient(address=running.ray_address).cluster_id.hex()
    return found
