"""Route of a signal, whose body is any JSON value; what else is asked of invocations are functions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request

from toque.functions.arguments import Name
from toque.functions.resources.invocations import InvocationState, state_of_record
from toque.functions.runtime.durable.invocation import ledger_of
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, json_of
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["invocations"])


@router.post("/invocations/{invocation}/signals/{name}", response_model=InvocationState, status_code=202)
async def signal_invocation(
    request: Request, invocation: Name, name: Name, _: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Send signal `name`, with the JSON value in the body, to the workflow that waits for it."""
    services = services_of(request)
    context = await context_of(request)
    value = await json_of(request) if await request.body() else None
    record = await services.run(ledger_of(context).signal, invocation, name, value)
    return Json((await services.run(state_of_record, record, context)).model_dump(mode="json"), 202)
