"""Costs are summed by a schedule, so that a page of costs reads what ended since."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from toque.functions import function
from toque.functions.maintenance import costs
from toque.functions.runtime.durable.costs import costs_since
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import open_store

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
_USAGE = {"run_s": 2.0, "cpu_s": 1.5, "gpu_s": 0.0, "peak_memory_bytes": 1, "store_reads": 3, "store_writes": 1}  # fmt: skip


@function
def count_flights(day: str) -> int:
    """Count the flights of a day."""
    return len(day)


def test_what_the_schedule_has_summed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [NOW - timedelta(days=3)]
    ledger = Ledger(open_store(f"file://{tmp_path}/store"), actor="ada", clock=lambda: at[0])
    monkeypatch.setattr(costs, "ledger_of", lambda _: ledger)
    for number in range(6):
        at[0] += timedelta(hours=6)
        followed = ledger.follow(ledger.submit(count_flights, {"day": "x"}, key=str(number)))
        for body in (
            {"kind": "started", "worker": "w", "node": "", "lease_s": 15.0, "digest": "d"},
            {"kind": "succeeded", "result": {"json": 1}, "usage": _USAGE},
        ):
            followed.append(lambda _, body=body: body)
    at[0] = NOW
    assert costs.sum_costs.schedule
    assert costs.sum_costs(days=1) == 0
    assert costs.sum_costs(days=30) == 6
    with pytest.raises(ValueError, match=r"days: .*greater than or equal to 1, got 0"):
        costs.sum_costs(days=0)
    read: list[str] = []
    follow = ledger.follow
    monkeypatch.setattr(ledger, "follow", lambda *given: (read.append(given[0]), follow(*given))[1])
    assert sum(row.invocations for row in costs_since(ledger, (NOW - timedelta(days=29)).date())) == 6
    assert not read
