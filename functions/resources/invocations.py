"""Durable invocations: their state and logs, cancelling, redriving and purging them, and what they cost."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from redis import RedisError

from toque.functions.arguments import Name
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.durable.costs import CostRow, KnownCosts, costs_of, costs_since, known_costs
from toque.functions.runtime.durable.invocation import Invocation, ledger_of
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.values import get_value
from toque.functions.runtime.function import function
from toque.functions.runtime.process import platform_totals
from toque.functions.runtime.receipt import Prices
from toque.functions.runtime.run.log import Progress, Segment, find_progress
from toque.registry import DEFAULT_WORKSPACE

_KNOWN_WITHIN_S = 0.2

InvocationStatus = Literal["queued", "running", "failed", "waiting", "succeeded", "dead", "cancelled"]
InvocationId = Annotated[Name, Field(description="Id of the invocation.")]
_DAYS = Field(
    ge=1, le=3_650, description="Only what was submitted in the last so many days (UTC), today included."
)


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


@function(
    route="GET /invocations",
    role="viewer",
    command="invocations list",
    view=View(
        columns="ID: id | function | status | submitted: submitted_at",
        wide="caller | attempts | key | finished: finished_at | arguments",
        texts="arguments",
        empty="there is no invocation[ in the state {state}]",
    ),
)
def list_invocations(
    state: Annotated[InvocationStatus | None, Field(description="Only those in this state.")] = None,
    function: Annotated[
        str | None, Field(max_length=128, description="Only those of the function of this name.")
    ] = None,
    after: Annotated[
        str | None,
        Field(pattern=r"^[0-9A-Za-z_-]{1,64}$", description="Id of the last one of the page before."),
    ] = None,
    scan: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="How many are looked at, at most, for those of a function or a state; all unless given.",
        ),
    ] = None,
    limit: Annotated[int, Field(ge=1, le=10_000, description="Number of invocations at most.")] = 100,
) -> list[InvocationState]:
    """List invocations, the newest first.

    The dead ones and those that have not ended have an index. Other listings read from the newest on until they have enough.
    """
    used = context()
    records = ledger_of(used).invocations(
        status=state, function=function, after=after, scan=scan, limit=limit
    )
    return [state_of_record(record, used) for record in records]


@function(
    route="GET /invocations/{invocation}",
    role="viewer",
    command="invocations show INVOCATION",
    view=View(
        facts="ID: id | function | status | caller | key | arguments | submitted: submitted_at | started: started_at | "
        "finished: finished_at | attempts | workers lost: lost | steps done: steps | waits for: waits_for | "
        "error: failure as {type}: {message} | result: result as json | queue, s: receipt.queue_s | run, s: receipt.run_s | "
        "CPU, s: receipt.cpu_s | GPU, s: receipt.gpu_s",
        wide="due | progress | peak memory, bytes: receipt.peak_memory_bytes",
        texts="arguments | steps done | error | result | progress",
        page="invocations/{invocation}",
    ),
)
def get_invocation(invocation: InvocationId) -> InvocationState:
    """Read the state of an invocation, and its result."""
    return state_of(Invocation[Any](invocation, context()))


@function(route="GET /invocations/{invocation}/logs", role="viewer")
def invocation_logs(
    invocation: InvocationId,
    after: Annotated[
        str, Field(pattern=r"^[0-9a-f-]{0,64}$", description="Name of the last segment already read.")
    ] = "",
    limit: Annotated[int, Field(ge=1, le=100, description="Number of segments at most.")] = 100,
) -> list[Segment]:
    """Read the output and log of an invocation, in segments by time."""
    return list(islice(Invocation[Any](invocation, context()).log(after=after), limit))


@function(route="GET /costs", role="viewer")
def list_costs(days: Annotated[int | None, _DAYS] = None) -> list[CostRow]:
    """Sum the receipts of invocations by function, day, caller and model, of those submitted in the last `days`.

    Days that are over are summed once; without `days` it reads every invocation. In the default workspace the store requests
    of the platform's own processes are there too, by process and day, if Redis has them.
    """
    used = context()
    if days is None:
        return [*costs_of(ledger_of(used).invocations(limit=sys.maxsize)), *_platform_rows(used, "")]
    day = _first_day(used, days)
    return [*costs_since(ledger_of(used), day), *_platform_rows(used, day.isoformat())]


@function(route="GET /costs/known", role="viewer")
def known_costs_of_days(days: Annotated[int, _DAYS] = 7) -> KnownCosts:
    """Sum receipts as `GET /costs` does, as far as they are known within a fifth of a second, and say which days are behind.

    The newest days are read first; of those that are not reached the sums count that the function `sum_costs` kept.
    """
    used = context()
    day = _first_day(used, days)
    known = known_costs(ledger_of(used), day, within_s=_KNOWN_WITHIN_S)
    return known.model_copy(update={"rows": [*known.rows, *_platform_rows(used, day.isoformat())]})


@function(route="GET /prices", role="viewer")
def get_prices() -> Prices | None:
    """Read the prices of CPU, GPU and store requests that the platform was given; null without any."""
    return context().prices


@function(
    route="DELETE /invocations/{invocation}",
    command="invocations cancel INVOCATION",
    view=View(text="{status}"),
)
def cancel_invocation(invocation: InvocationId) -> InvocationState:
    """Cancel an invocation that has not ended; running work is killed."""
    used = context()
    return state_of_record(ledger_of(used).cancel(invocation), used)


@function(
    route="POST /invocations/{invocation}/redrive 202",
    command="invocations redrive INVOCATION",
    view=View(text="{status}"),
)
def redrive_invocation(invocation: InvocationId) -> InvocationState:
    """Queue a dead or cancelled invocation again, its finished steps kept."""
    used = context()
    return state_of_record(ledger_of(used).redrive(invocation), used)


@function(
    route="POST /invocations/{invocation}/purge",
    command="invocations purge INVOCATION",
    view=View(text="purged"),
)
def purge_invocation(invocation: InvocationId) -> InvocationState:
    """Remove an invocation from the dead letters; its record stays."""
    used = context()
    return state_of_record(ledger_of(used).purge(invocation), used)


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
        steps=[step.function for step in record.steps],
        signals=list(record.signals),
        progress=None if record.ended or record.untouched else find_progress(context.store, record.id),
        failure=record.failure.model_dump() if record.failure else None,
        receipt=record.receipt.model_dump(mode="json") if record.receipt else None,
        result=get_value(context.store, record.result) if record.result else None,
    )


def _first_day(used: Context, days: int) -> date:
    """Find the first of the last `days` (UTC), today included."""
    return used.clock().astimezone(UTC).date() - timedelta(days=days - 1)


def _platform_rows(used: Context, first: str) -> list[CostRow]:
    """List the store requests of the platform's own processes since a day, in the default workspace, if Redis has them."""
    if used.workspace != DEFAULT_WORKSPACE or used.redis_url is None:
        return []
    with suppress(RedisError):  # what the functions cost is known without it
        return [CostRow(**row.model_dump()) for row in platform_totals(used.redis_url) if row.day >= first]
    return []
