"""Deploys MLflow's protocol on Ray Serve under `/api`, so that clients' tracking address is the platform's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from toque.clusters.profile import apply_profile
from toque.ray_apps.serve.process import freeze

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

ROUTE_PREFIX = "/api"
MAX_ONGOING_REQUESTS = 256


def application(options: dict[str, Any] | None = None) -> Application:
    """Build the Serve application, also for `serve deploy`; its route prefix must be `/api`.

    options: passed to the deployment's `options`, such as num_replicas; and `on_serve_nodes`, with which replicas run
    only where the resource `serve` is, two or more never all on one of several such nodes.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    from toque.ray_apps.serve.spread import laid_out  # late: as above

    chosen: dict[str, Any] = {
        "name": "mlflow",
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 0},  # the application waits more than it computes
    } | (options or {})
    deployment: Any = serve.deployment(serve.ingress(build)(), **laid_out(chosen))
    found: Application = deployment.bind()
    return found


def build() -> FastAPI:
    """Build the application in a replica, for all workspaces of the platform that the process's environment names."""
    from toque.functions.runtime.context import context_of  # late: only a replica needs them
    from toque.functions.runtime.process import enter_process
    from toque.ray_apps.mlflow.app import build_app
    from toque.ray_apps.oidc import OidcSettings
    from toque.registry import DEFAULT_WORKSPACE

    apply_profile(os.environ)
    context = context_of(os.environ).in_workspace(DEFAULT_WORKSPACE)
    enter_process("mlflow", store_url=context.store_url, environment=os.environ, redis_url=context.redis_url)
    app = build_app(
        context.store, clock=context.clock, oidc=OidcSettings.from_environment(os.environ), behind_serve=True
    )
    freeze()
    return app
