"""MLflow's tracking and model-registry REST API on the registry, put together from its routers."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_apps.gateway.limits import BodyLimit
from ray_apps.mlflow import artifacts, errors, experiments, logged_models, models, runs, versions
from ray_apps.mlflow.services import Desk, Reader
from ray_apps.mlflow.wire import Json
from registry import Access, Clock, ObjectStore, utc_now


def build_app(store: ObjectStore, *, access: Access | None = None, clock: Clock = utc_now) -> FastAPI:
    """The application, to be mounted at `/api`; it needs neither Ray nor Serve.

    store: the registry's; access: its tokens, None: those in the store; clock: gives the times of changes.
    """
    app = FastAPI(title="Toque by MLflow's protocol", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.desk = Desk(store, access=access, clock=clock)
    for room in (experiments, runs, logged_models, artifacts, models, versions):
        app.include_router(room.router)
    app.add_api_route("/3.0/mlflow/server-info", server_info, methods=["GET"])
    app.add_middleware(_Bounded)
    errors.install(app)
    return app


class _Bounded:
    """ASGI middleware: a body is bounded, except an artifact's, which is streamed to the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self._open = app
        self._bounded = BodyLimit(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._open if scope.get("method") == "PUT" else self._bounded
        await app(scope, receive, send)


def server_info(_: Reader) -> Json:
    """What this server has beyond the plain protocol: nothing."""
    return {
        "store_type": "toque",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
    }
