"""Builds the application that serves MLflow's tracking and model-registry REST API from the registry, and deploys it.

It is served under `/api`, so that clients' tracking address is the platform's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from toque.clusters.profile import apply_profile
from toque.ray_apps.admission import BodyLimit, open_admission, write_refusals_at_end
from toque.ray_apps.middleware import NO_TELEMETRY, AnswersHead, TracedRequests
from toque.ray_apps.mlflow import (
    artifacts,
    experiments,
    logged_models,
    models,
    runs,
    services,
    versions,
    workspaces,
)
from toque.ray_apps.mlflow.services import MlflowServices
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.serve.process import freeze
from toque.registry import DEFAULT_WORKSPACE, Access, Clock, ObjectStore, utc_now

if TYPE_CHECKING:
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

    apply_profile(os.environ)
    context = context_of(os.environ).in_workspace(DEFAULT_WORKSPACE)
    enter_process("mlflow", store_url=context.store_url, environment=os.environ, redis_url=context.redis_url)
    app = build_app(
        context.store, clock=context.clock, oidc=OidcSettings.from_environment(os.environ), behind_serve=True
    )
    freeze()
    return app


def build_app(
    store: ObjectStore,
    *,
    access: Access | None = None,
    clock: Clock = utc_now,
    oidc: OidcSettings | None = None,
    behind_serve: bool = False,
) -> FastAPI:
    """Build the application, to be mounted at `/api`; it needs neither Ray nor Serve.

    store: the platform's; access: its tokens, None: those in the store; clock: gives the times of changes;
    oidc: issuer whose tokens are accepted, too; behind_serve: whether Serve answers with ids of requests.
    """
    app = FastAPI(
        title="Toque by MLflow's protocol",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=write_refusals_at_end,
        telemetry=NO_TELEMETRY,
    )
    listed = access or Access(store, actor="mlflow")
    app.state.services = MlflowServices(store, listed, clock=clock)
    app.state.admission = open_admission(store, "mlflow", access=listed, oidc=oidc)
    modules = (experiments, runs, logged_models, artifacts, models, versions, workspaces)
    app.state.routes = [route for module in modules for route in module.router.routes]
    # FastAPI analyses the routes of an included router again, for every application
    app.routes.extend(app.state.routes)
    app.add_middleware(_LimitBodies)
    app.add_middleware(TracedRequests, behind_serve=behind_serve)
    app.add_middleware(AnswersHead)
    services.install(app)
    return app


class _LimitBodies:
    """ASGI middleware that limits a body's size, except an artifact's, which is streamed to the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self._unlimited = BodyLimit(app, limit_bytes=None)
        self._limited = BodyLimit(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._unlimited if scope.get("method") == "PUT" else self._limited
        await app(scope, receive, send)
