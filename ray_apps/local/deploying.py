"""Connects to the Ray head, and deploys gateway, MLflow's protocol, ticker and a predictor for each model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray_apps.local import ray_head
from ray_apps.local.errors import LocalError
from ray_apps.local.state_file import RunningPlatform
from ray_apps.loopback import stay_on_loopback
from ray_apps.model_paths import qualified_name, split_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import RunTarget

    from functions.placement import Placement
    from ray_apps.predictor import PredictorOptions


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
    serve.run_many([*targets(placements(running)), grpc_target(running)])


def targets(models: Mapping[str, Placement]) -> list[RunTarget]:
    """List the applications to deploy: gateway, MLflow's protocol, ticker, and predictors as models are placed.

    models: by qualified name.
    """
    from ray.serve import RunTarget  # late: as above

    from ray_apps import gateway, mlflow, ticker

    platform_apps: list[tuple[str, str | None, Any]] = [
        ("gateway", "/", gateway.application()),
        ("mlflow", mlflow.ROUTE_PREFIX, mlflow.application()),
        ("ticker", None, ticker.application()),
    ]
    return [
        RunTarget(target=target, name=name, route_prefix=prefix)
        for name, prefix, target in (*platform_apps, *_predictors(models))
    ]


def _predictors(models: Mapping[str, Placement]) -> list[tuple[str, str | None, Any]]:
    """List name, route prefix and application of every predictor, and of the pools that a model is placed in."""
    from ray_apps import predictor  # late: as above

    found: list[tuple[str, str | None, Any]] = []
    pools: dict[str, None] = {}  # by workspace, each once
    for name, place in models.items():
        workspace, model = split_name(name)
        if place.pool:
            pools[workspace] = None
            continue
        # No CPU is reserved: on a small machine training would find none left.
        options = predictor.PredictorOptions.from_environment(os.environ, num_cpus=0, workspace=workspace)
        application = predictor.application(model, _with_placement(options, place))
        found.append(
            (predictor.app_name(model, workspace), predictor.route_prefix(model, workspace), application)
        )
    for workspace in pools:
        pool = predictor.PoolOptions.from_environment(os.environ, num_cpus=0, workspace=workspace)
        application = predictor.pool_application(pool)
        found.append((predictor.pool_app(workspace), predictor.pool_prefix(workspace), application))
    return found


def _with_placement(options: PredictorOptions, place: Placement) -> PredictorOptions:
    if place.dedicated:
        from ray_apps.predictor import DedicatedOptions  # late: as above

        own = place.model_dump(include=set(DedicatedOptions.model_fields))
        return options.model_copy(update={"dedicated": DedicatedOptions(**own)})
    if place.min_replicas == place.max_replicas:
        return options.model_copy(update={"num_replicas": place.max_replicas})
    return options.model_copy(
        update=place.model_dump(include={"min_replicas", "max_replicas", "target_latency_ms"})
    )


def grpc_target(running: RunningPlatform) -> RunTarget:
    """The gRPC proxy to all models."""
    from ray.serve import RunTarget  # late: as above

    from ray_apps.predictor import grpc

    options = grpc.ProxyOptions.from_environment(
        os.environ, url=running.url, host=running.settings.host, port=running.ports.grpc
    )
    return RunTarget(target=grpc.grpc_application(options), name=grpc.GRPC_APP, route_prefix=None)


def models_of(project: str | None) -> tuple[str, ...]:
    """List the models that the users' projects declare, by qualified name. project: as TOQUE_PROJECT says."""
    return tuple(_placements_of(project))


def placements(running: RunningPlatform) -> dict[str, Placement]:
    """Read from the projects where each model of a platform is served, by qualified name."""
    declared = _placements_of(running.settings.project) if running.models else {}
    return {name: declared[name] for name in running.models}


def _placements_of(project: str | None) -> dict[str, Placement]:
    from functions.runtime.context import projects_of  # late: it brings Ray in

    modules = projects_of(project or "")
    if not modules:
        return {}
    from functions.project import load_project  # late: the user's code is imported only if there is a project

    return {
        qualified_name(name, workspace): model.placement
        for workspace, module in modules.items()
        for name, model in load_project(module).models.items()
    }


def _cluster_id(running: RunningPlatform) -> str:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray has no public name for it

    found: str = GcsClient(address=running.ray_address).cluster_id.hex()
    return found
