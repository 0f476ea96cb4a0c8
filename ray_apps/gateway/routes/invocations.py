"""Routes of durable invocations: read their state, cancel, redrive, signal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from redis import RedisError

from toque.functions.arguments import Name
from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.costs import CostRow, KnownCosts, costs_of, costs_since, known_costs
from toque.functions.runtime.durable.invocation import Invocation, ledger_of
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.values import get_value
from toque.functions.runtime.errors import FunctionError
from toque.functions.runtime.process import platform_totals
from toque.functions.runtime.receipt import Prices
from toque.functions.runtime.run.log import Progress, Segment, find_progress
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.problems import Problem, status_of
from toque.ray_apps.gateway.services import Services, context_of, services_of
from toque.ray_apps.gateway.wire import Json, json_of
from toque.registry import DEFAULT_WORKSPACE, Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["invocations"])
_KNOWN_WITHIN_S = 0.2

InvocationStatus = Literal["queued", "running", "failed", "waiting", "succeeded", "dead", "cancelled"]


class InvocationState(BaseModel):
    """State of an invocation; `result` once it has succeeded, `failure` while its last attempt failed."""

    id: str
    function: str
    status: InvocationStatus
    caller: str
    key: str | None
    arguments: dict[str, Any]
    submitted_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    due: datetime
    attempts: int
    lost: int
    parent: str | None
    steps: list[str]
    signals: list[str]
    waits_for: str | None
    progress: Progress | None
    failure: dict[str, str] | None
    receipt: dict[str, Any] | None
    result: Any = None


@router.get("/invocations", response_model=list[InvocationState])
async def list_invocations(
    request: Request,
    _: Annotated[Principal, allowed(Role.viewer)],
    state: InvocationStatus | None = None,
    function: Annotated[str | None, Query(max_length=128)] = None,
    after: Annotated[str | None, Query(pattern=r"^[0-9A-Za-z_-]{1,64}$")] = None,
    scan: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> Json:
    """Invocations, the newest first, at most `limit`; `after` is the id of the last one listed before.

    `scan` is how many are looked at, at most, for those of a function or a state; without it all are.
    The dead ones and those that have not ended have an index. Other listings read from the newest on until they have enough.
    """
    services = services_of(request)

    def listed(context: Context) -> list[dict[str, Any]]:
        records = ledger_of(context).invocations(
            status=state, function=function, after=after, scan=scan, limit=limit
        )
        return [state_of_record(record, context).model_dump(mode="json") for record in records]

    return Json(await services.run(listed, await context_of(request)))


@router.get("/invocations/{invocation}", response_model=InvocationState)
async def get_invocation(
    request: Request, invocation: Name, _: Annotated[Principal, allowed(Role.viewer)]
) -> Json:
    """Read the state of an invocation, and its result."""
    services = services_of(request)
    found = Invocation[Any](invocation, await context_of(request))
    return Json((await services.run(state_of, found)).model_dump(mode="json"))


@router.get("/invocations/{invocation}/logs", response_model=list[Segment])
async def get_logs(
    request: Request,
    invocation: Name,
    _: Annotated[Principal, allowed(Role.viewer)],
    after: Annotated[str, Query(pattern=r"^[0-9a-f-]{0,64}$")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Json:
    """Read the output and log of an invocation, in segments by time; `after` names the last segment already read."""
    services = services_of(request)
    found = Invocation[Any](invocation, await context_of(request))

    def read() -> list[dict[str, Any]]:
        return [each.model_dump(mode="json") for each in islice(found.log(after=after), limit)]

    return Json(await services.run(read))


@router.get("/costs", response_model=list[CostRow])
async def list_costs(
    request: Request,
    _: Annotated[Principal, allowed(Role.viewer)],
    days: Annotated[int | None, Query(ge=1, le=3_650)] = None,
) -> Json:
    """Sum the receipts of invocations by function, day, caller and model, of those submitted in the last `days` (UTC), today included.

    Days that are over are summed once; without `days` it reads every invocation. In the default workspace the store requests of the platform's own processes are there too, by process and day, if
    Redis has them.
    """
    services = services_of(request)

    def summed(context: Context) -> list[dict[str, Any]]:
        ledger = ledger_of(context)
        if days is None:
            first, rows = "", costs_of(ledger.invocations(limit=sys.maxsize))
        else:
            day = _first_day(context, days)
            first, rows = day.isoformat(), costs_since(ledger, day)
        return [each.model_dump(mode="json") for each in (*rows, *_platform_rows(context, first))]

    return Json(await services.run(summed, await context_of(request)))


@router.get("/costs/known", response_model=KnownCosts)
async def list_known_costs(
    request: Request,
    _: Annotated[Principal, allowed(Role.viewer)],
    days: Annotated[int, Query(ge=1, le=3_650)] = 7,
) -> Json:
    """Sum receipts as `GET /costs` does, as far as they are known within a fifth of a second, and say which days are behind.

    The newest days are read first; of those that are not reached the sums count that the function `sum_costs` kept.
    """
    services = services_of(request)

    def known(context: Context) -> dict[str, Any]:
        day = _first_day(context, days)
        found = known_costs(ledger_of(context), day, within_s=_KNOWN_WITHIN_S)
        rows = [*found.rows, *_platform_rows(context, day.isoformat())]
        return found.model_copy(update={"rows": rows}).model_dump(mode="json")

    return Json(await services.run(known, await context_of(request)))


def _first_day(context: Context, days: int) -> date:
    """Find the first of the last `days` (UTC), today included."""
    return context.clock().astimezone(UTC).date() - timedelta(days=days - 1)


def _platform_rows(context: Context, first: str) -> list[CostRow]:
    """List the store requests of the platform's own processes since a day, in the default workspace, if Redis has them."""
    if context.workspace != DEFAULT_WORKSPACE or context.redis_url is None:
        return []
    with suppress(RedisError):  # what the functions cost is known without it
        found = platform_totals(context.redis_url)
        return [CostRow(**each.model_dump()) for each in found if each.day >= first]
    return []


@router.get("/prices", response_model=Prices | None)
async def get_prices(request: Request, _: Annotated[Principal, allowed(Role.viewer)]) -> Json:
    """Read the prices of CPU, GPU and store requests that the platform was given; null without any."""
    prices = (await context_of(request)).prices
    return Json(None if prices is None else prices.model_dump(mode="json"))


@router.delete("/invocations/{invocation}", response_model=InvocationState)
async def cancel_invocation(
    request: Request, invocation: Name, _: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Cancel an invocation that has not ended; running work is killed."""
    services = services_of(request)
    context = await context_of(request)
    record = await services.run(ledger_of(context).cancel, invocation)
    return Json((await services.run(state_of_record, record, context)).model_dump(mode="json"))


@router.post("/invocations/{invocation}/redrive", response_model=InvocationState, status_code=202)
async def redrive_invocation(
    request: Request, invocation: Name, _: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Queue a dead or cancelled invocation again, its finished steps kept."""
    services = services_of(request)
    context = await context_of(request)
    record = await _change_dead(services, ledger_of(context).redrive, invocation)
    return Json((await services.run(state_of_record, record, context)).model_dump(mode="json"), 202)


@router.post("/invocations/{invocation}/purge", response_model=InvocationState)
async def purge_invocation(
    request: Request, invocation: Name, _: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Remove an invocation from the dead letters; its record stays."""
    services = services_of(request)
    context = await context_of(request)
    record = await _change_dead(services, ledger_of(context).purge, invocation)
    return Json((await services.run(state_of_record, record, context)).model_dump(mode="json"))


async def _change_dead(services: Services, act: Callable[[str], Record], invocation: str) -> Record:
    try:
        return await services.run(act, invocation)
    except FunctionError as error:
        if status_of(error) is not None:
            raise
        raise Problem(409, str(error), kind="not-dead") from error


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


def state_of(invocation: Invocation[Any]) -> InvocationState:
    """Read the state of an invocation. Raises: UnknownInvocation."""
    return state_of_record(invocation.record(), invocation.used)


def state_of_record(record: Record, context: Context) -> InvocationState:
    """Describe the state in a ledger record, with its arguments, progress and result."""
    shared = record.model_dump(
        include=set(InvocationState.model_fields)
        - {"arguments", "steps", "signals", "progress", "failure", "receipt", "result"}
    )
    return InvocationState(
        **shared,
        arguments=get_value(context.store, record.arguments),
        steps=[each.function for each in record.steps],
        signals=list(record.signals),
        progress=None if record.ended or record.untouched else find_progress(context.store, record.id),
        failure=record.failure.model_dump() if record.failure else None,
        receipt=record.receipt.model_dump(mode="json") if record.receipt else None,
        result=get_value(context.store, record.result) if record.result else None,
    )
