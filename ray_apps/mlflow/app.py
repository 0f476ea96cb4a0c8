"""Builds the application that serves MLflow's tracking and model-registry REST API from the registry."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

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
from toque.registry import Access, Clock, ObjectStore, utc_now


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
