"""Route that tells what became of one request, from the id of its prediction or of its trace."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, Name
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])

MAX_DAYS = 3_650


@router.get("/traces/{request_id:path}")
async def get_trace(
    request: Request,
    request_id: Annotated[str, Path(min_length=1, max_length=512)],
    _: Annotated[Principal, allowed(Role.viewer)],
    model: Name | None = None,
    days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 7,
) -> Json:
    """Tell what became of a request: its predictions, their stages and labels, and the verdicts that used them.

    request_id: of a prediction or of a trace. model: the only one whose log is read; by default those of the workspace. days:
    how far to look back. Inputs, units and entities are left out.
    """
    services, context = services_of(request), await context_of(request)
    await services.ready()

    def found() -> dict[str, Any]:
        from toque.functions.reporting import find_request  # late: it is there once the functions are

        now = context.clock()
        models = [model] if model is not None else context.registry().list_models()
        since = now - timedelta(days=days)
        answer = find_request(context.store, models, request_id, since=since, until=now + timedelta(days=1))
        return answer.model_dump(mode="json")

    return Json(await services.run(found))
