"""Routes for operators: health, metrics, schedules, and the inference protocol's server calls and repository index."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StrictBool
from starlette.responses import PlainTextResponse, Response

from toque.functions.runtime.context import Context
from toque.functions.runtime.triggers import schedule
from toque.ray_apps.admission import ANY_MODEL, OPEN, GuardedRoute, NotAdmitted, allowed
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.model_paths import models_path
from toque.registry import DEFAULT_WORKSPACE, ModelState, NotFound, Principal, Role

router = APIRouter(route_class=GuardedRoute)
NAME, VERSION = "toque", "0.1.0"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
READY, UNAVAILABLE = "READY", "UNAVAILABLE"
Asking = Annotated[Principal, allowed(Role.viewer, Role.caller)]


class IndexRequest(BaseModel):
    """Filter of the repository index; ready: list only versions that are deployed."""

    ready: StrictBool = False


class IndexEntry(BaseModel):
    """Version in the repository index; state: READY, or UNAVAILABLE with a reason, as Triton calls them."""

    name: str
    version: str
    state: str
    reason: str = ""


@router.post("/v2/repository/index", tags=["protocol"], response_model=list[IndexEntry])
async def get_index(request: Request, _: Viewer, body: IndexRequest | None = None) -> Json:
    """List the workspace's versions that a traffic policy or an alias names; READY tells that a model is deployed."""
    context = await context_of(request)

    def listed() -> list[Any]:
        registry = context.registry()
        states = [registry.get_model(name) for name in registry.list_models()]
        found = index(states, workspace=context.workspace, deployed=_applications())
        if body is not None and body.ready:
            found = [entry for entry in found if entry.state == READY]
        return [entry.model_dump() for entry in found]

    return Json(await services_of(request).run(listed))


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


def index(
    states: Iterable[ModelState], *, deployed: Collection[str], workspace: str = DEFAULT_WORKSPACE
) -> list[IndexEntry]:
    """Make the index entries of a workspace's models; deployed: names of the running Serve applications."""
    from toque.ray_apps.predictor import app_name, pool_app  # late: they bring Ray Serve, which takes seconds
    from toque.ray_apps.predictor.versions.routes import wanted_versions

    found: list[IndexEntry] = []
    for state in states:
        is_deployed = app_name(state.name, workspace) in deployed or pool_app(workspace) in deployed
        for number in wanted_versions(state.traffic, state.aliases):
            entry = IndexEntry(name=state.name, version=str(number), state=READY)
            if not is_deployed:
                entry = entry.model_copy(update={"state": UNAVAILABLE, "reason": "the model is not deployed"})
            found.append(entry)
    return found


def _applications() -> frozenset[str]:
    """Names of the running Serve applications; empty without a cluster."""
    import ray  # late: as above

    if not ray.is_initialized():
        return frozenset()
    from ray import serve

    applications = serve.status().applications
    return frozenset(name for name, found in applications.items() if found.status == "RUNNING")


def statuses(context: Context) -> list[dict[str, Any]]:
    """List schedules with the last tick that was handled. Raises: Problem 503 while a replayed clock is not set."""
    try:
        context.clock()
    except LookupError as error:
        raise Problem(503, str(error), kind="clock-not-set", headers={"Retry-After": "1"}) from error
    return [each.model_dump(mode="json") for each in schedule.status(context)]
