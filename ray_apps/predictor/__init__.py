"""The model server: the Open Inference Protocol v2 over the versions of the registry.

Each model is a Serve application of its own under `/v2/models/{name}`, or one of many in the pool; models of a
workspace other than the default one are below `/workspaces/{workspace}`. Replicas follow the models' traffic policies, load what they name beside the traffic, and log every answer before it leaves.

What deploys a model is imported when it is first asked for: every process of Serve imports `http.bypass`, also those that serve no
model, and 100 MB and a second came with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toque.ray_apps.predictor.deploy.deployment import (
        POOL_APP,
        POOL_PREFIX,
        app_name,
        application,
        build_pool,
        build_predictor,
        deploy_model,
        deploy_pool,
        pool_app,
        pool_application,
        pool_prefix,
        route_prefix,
    )
    from toque.ray_apps.predictor.deploy.options import DedicatedOptions, PoolOptions, PredictorOptions

__all__ = [
    "POOL_APP",
    "POOL_PREFIX",
    "DedicatedOptions",
    "PoolOptions",
    "PredictorOptions",
    "app_name",
    "application",
    "build_pool",
    "build_predictor",
    "deploy_model",
    "deploy_pool",
    "pool_app",
    "pool_application",
    "pool_prefix",
    "route_prefix",
]
_OPTIONS = frozenset({"DedicatedOptions", "PoolOptions", "PredictorOptions"})


def __getattr__(name: str) -> object:
    """Import what deploys a model when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "options" if name in _OPTIONS else "deployment"
    found: object = getattr(import_module(f"{__name__}.deploy.{module}"), name)
    globals()[name] = found
    return found
