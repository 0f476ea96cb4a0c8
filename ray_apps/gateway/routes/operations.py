"""Routes for operators: health, metrics, schedules, and the server calls of the inference protocol."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from toque.ray_apps.admission import ANY_MODEL, OPEN, GuardedRoute, NotAdmitted, allowed
from toque.ray_apps.gateway.routes.schedules import statuses
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.model_paths import models_path
from toque.registry import DEFAULT_WORKSPACE, NotFound, Principal, Role

router = APIRouter(route_class=GuardedRoute)

NAME, VERSION = "toque", "0.1.0"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Viewer = Annotated[Principal, allowed(Role.viewer)]
Asking = Annotated[Principal, allowed(Role.viewer, Role.caller)]


@router.get("/healthz", tags=["health"], dependencies=[OPEN])
async def get_health() -> Json:
    """Tell that this process answers; together with the protocol's health calls the only route without a token."""
    return Json({"status": "ok"})


@router.get("/v2/health/live", tags=["protocol"], dependencies=[OPEN])
async def get_live() -> Json:
    """Tell whether the server is alive."""
    return Json({"live": True})


@router.get(
    "/v2/health/ready",
    tags=["protocol"],
    responses={503: {"description": "The store is away"}},
    dependencies=[OPEN],
)
async def get_ready(request: Request) -> Json:
    """Tell whether the server can do its work, for which the store must answer."""
    ready = await services_of(request).readiness.is_ready()
    return Json({"ready": ready}, 200 if ready else 503)


@router.get("/v2", tags=["protocol"])
async def get_server(_: Annotated[Principal, allowed(Role.viewer, Role.caller, model=ANY_MODEL)]) -> Json:
    """The server's name, version and protocol extensions."""
    return Json({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def get_metrics(request: Request, principal: Viewer) -> Response:
    """Render the series of all nodes, as Prometheus reads them.

    They tell of all workspaces, so they take a viewer of the default one.
    """
    if not principal.may(Role.viewer, DEFAULT_WORKSPACE):
        raise NotAdmitted(403, f"{principal.name} has {principal.roles}; metrics need viewer in 'default'")
    text = await services_of(request).run(services_of(request).metrics)
    return Response(text, media_type=METRICS_TYPE)


@router.get("/schedules", tags=["functions"])
async def get_schedules(request: Request, _: Viewer) -> Json:
    """List the workspace's schedules: the function, the last tick that was handled, and the next one."""
    services = services_of(request)
    await services.ready()
    return Json(await services.run(statuses, await context_of(request)))


@router.get("/v2/models/{model}", tags=["protocol"], include_in_schema=False)
@router.get("/v2/models/{model}/{rest:path}", tags=["protocol"], include_in_schema=False)
@router.post("/v2/models/{model}/{rest:path}", tags=["protocol"], include_in_schema=False)
async def no_such_model(request: Request, model: str, _: Asking, rest: str = "") -> Json:
    """Answer 404 for a model that is not served: a served one has a route of its own, which goes first."""
    context = await context_of(request)
    known = await services_of(request).run(lambda: model in context.registry().list_models())
    right = f"{models_path(context.workspace)}/{model}"
    if known and request.url.path != f"{right}/{rest}".rstrip("/"):
        raise NotFound(f"model {model!r} of workspace {context.workspace!r} is served at {right}, if it is")
    raise NotFound(
        f"model {model!r} is not served in workspace {context.workspace!r}; `GET /models` lists the registry's, "
        "`toque up` serves them"
    )
