"""Route of the inference protocol's repository index: versions that policies name, and whether they are deployed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StrictBool

from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import DEFAULT_WORKSPACE, ModelState, Principal, Role

router = APIRouter(route_class=GuardedRoute)

Viewer = Annotated[Principal, allowed(Role.viewer)]
READY, UNAVAILABLE = "READY", "UNAVAILABLE"


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
