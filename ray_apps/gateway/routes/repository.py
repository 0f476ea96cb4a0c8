"""The protocol's repository index: the versions that the models' policies name, and whether they are deployed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ray_apps.gateway.auth import allowed
from ray_apps.gateway.services import services_of
from ray_apps.gateway.wire import Json
from registry import ModelState, Principal, Role

router = APIRouter()

Viewer = Annotated[Principal, allowed(Role.viewer)]
READY, UNAVAILABLE = "READY", "UNAVAILABLE"


class IndexWanted(BaseModel):
    """Which versions to list; ready: only those that are deployed."""

    ready: bool = False


class Indexed(BaseModel):
    """A version in the index, in Triton's words; state: READY or UNAVAILABLE, and then the reason."""

    name: str
    version: str
    state: str
    reason: str = ""


@router.post("/v2/repository/index", tags=["protocol"], response_model=list[Indexed])
async def get_index(request: Request, principal: Viewer, wanted: IndexWanted | None = None) -> Json:
    """Every version that a traffic policy or an alias names. READY: its model is deployed; ask it whether it is loaded."""
    services = services_of(request)
    registry = services.acting(principal).registry()

    def listed() -> list[Any]:
        states = [registry.get_model(name) for name in registry.list_models()]
        found = index(states, deployed=_applications())
        if wanted is not None and wanted.ready:
            found = [one for one in found if one.state == READY]
        return [one.model_dump() for one in found]

    return Json(await services.run(listed))


def index(states: Iterable[ModelState], *, deployed: Collection[str]) -> list[Indexed]:
    """The index of some models; deployed: the Serve applications that run."""
    from ray_apps.predictor import POOL_APP, app_name  # late: they bring Ray Serve, which takes seconds
    from ray_apps.predictor.versions.routes import wanted_versions

    found: list[Indexed] = []
    for state in states:
        is_deployed = app_name(state.name) in deployed or POOL_APP in deployed
        for number in wanted_versions(state.traffic, state.aliases):
            one = Indexed(name=state.name, version=str(number), state=READY)
            if not is_deployed:
                one = one.model_copy(update={"state": UNAVAILABLE, "reason": "the model is not deployed"})
            found.append(one)
    return found


def _applications() -> frozenset[str]:
    """Names of the Serve applications that run; empty outside of a cluster."""
    import ray  # late: as above

    if not ray.is_initialized():
        return frozenset()
    from ray import serve

    applications = serve.status().applications
    return frozenset(name for name, found in applications.items() if found.status == "RUNNING")
