"""Summing of what invocations used as a scheduled function, so that whoever looks at costs waits for the last minutes' alone."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Annotated

from pydantic import Field

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Cron, Retries
from toque.functions.runtime.durable.costs import costs_since
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.function import function


@function(
    http=True,
    timeout_s=3600,
    retries=Retries(max_attempts=3),
    max_concurrency=1,
    schedule=Cron("*/10 * * * *", jitter_s=120),
)
def sum_costs(
    days: Annotated[
        int,
        Field(
            ge=1, le=36_500, description="Number of days (UTC) that are summed; the last of them is today."
        ),
    ] = 30,
) -> int:
    """Sum the receipts of the invocations of the last days, and keep the sums; returns how many ended.

    A day is summed once: what is kept of it is only added to. The newest days come first; killed and repeated, it goes on where it was,
    some hundred invocations before at most.
    """
    ledger = ledger_of(context())
    first = ledger.clock().astimezone(UTC).date() - timedelta(days=days - 1)
    return sum(row.invocations for row in costs_since(ledger, first))
