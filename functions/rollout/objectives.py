"""Error budgets of all models that declare objectives: what each may still spend, and how fast it is spent now.

Whole days that are over are counted once and kept, so that a look reads the log of the last two days alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.functions.rollout.evidence.cohort_sums import unpinned_rows
from toque.functions.rollout.evidence.sums import SloSums
from toque.functions.rollout.jobs import HasRollout
from toque.functions.rollout.judge.slo import BURN_RATES, burning
from toque.functions.rollout.policy import Slo
from toque.functions.runtime.context import context
from toque.functions.runtime.definitions import declarations
from toque.functions.runtime.function import function
from toque.registry import ObjectStore
from toque.registry.times import epoch_us

_READ = ("arm", "shadow", "predicted_at", "latency_ms", "outputs")
_SETTLED = timedelta(days=1)  # after the end of a day, for rows of a lost node that are shipped late
_DAY = timedelta(days=1)

Counts = dict[str, tuple[int, int]]
"""Answers and bad ones among them, by day (UTC)."""


class ErrorBudget(BaseModel):
    """Error budget of one objective of a model, over the whole days (UTC) of its window.

    left: share of the budget that is not spent, below 0 if more was; None without answers. burn_rate: how many times as fast as it
    lasts with it is spent now, in the worse of two long windows. needs_somebody: whether it is spent, or will be within days.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    objective: str
    target: float
    slow_ms: float | None
    window_days: float
    answers: int
    bad: int
    left: float | None
    burn_rate: float
    needs_somebody: bool
    text: str


@function(http=True, role="viewer", timeout_s=120, in_thread=True)
def error_budgets() -> list[ErrorBudget]:
    """List the error budgets of all models that declare objectives, those that need somebody first, then the emptiest.

    Raises: ProjectError if the project is set and cannot be imported.
    """
    used = context()
    declared: Mapping[str, HasRollout] = declarations(used.project).models if used.project else {}
    now = used.clock()
    found = [
        _budget(used.store, name, slo, now)
        for name, definition in declared.items()
        for slo in definition.rollout.slos
    ]
    return sorted(found, key=lambda each: (not each.needs_somebody, 1.0 if each.left is None else each.left))


def _budget(store: ObjectStore, model: str, slo: Slo, now: datetime) -> ErrorBudget:
    days = _days(now - slo.window, now)
    counts = _kept(store, model, slo, days)
    missing = [day for day in days if day.isoformat() not in counts]
    longest = now - BURN_RATES[-1][0]
    rows = _judged(store, model, slo, min(_start(missing[0]), longest), now)
    counts |= rows.by_day(missing)
    settled = {day: counts[day.isoformat()] for day in missing if _start(day) + _DAY + _SETTLED <= now}
    if settled:
        _keep(store, model, slo, counts, [day for day in days if day not in missing or day in settled])
    recent = tuple((rows.since(now - long), rows.since(now - short)) for long, short, _ in BURN_RATES)
    answers, bad = (sum(each[at] for each in counts.values()) for at in (0, 1))
    finding = burning(slo, SloSums(answers=answers, bad=bad, recent=recent))
    allowed = (1 - slo.target) * answers
    left = None if not answers else 1.0 - bad / allowed if allowed else float(bad == 0)
    spent = left is not None and left < 0
    return ErrorBudget(
        model=model,
        objective=slo.name,
        target=slo.target,
        slow_ms=slo.slow_ms,
        window_days=slo.window / _DAY,
        answers=answers,
        bad=bad,
        left=left,
        burn_rate=finding.statistic or 0.0,
        needs_somebody=spent or finding.fired,
        text=f"{slo.name} is spent: {bad} of {answers} answers were bad, {allowed:.1f} are allowed" if spent else finding.text,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Judged:
    """Answers that users got: when, in microseconds since the epoch, and whether each was bad."""

    at: NDArray[np.int64]
    bad: NDArray[np.bool_]

    def since(self, start: datetime) -> tuple[int, int]:
        inside = self.at >= epoch_us(start)
        return int(inside.sum()), int((self.bad & inside).sum())

    def by_day(self, days: Iterable[date]) -> Counts:
        found = {}
        for day in days:
            start = _start(day)
            inside = (self.at >= epoch_us(start)) & (self.at < epoch_us(start + _DAY))
            found[day.isoformat()] = (int(inside.sum()), int((self.bad & inside).sum()))
        return found


def _judged(store: ObjectStore, model: str, slo: Slo, start: datetime, end: datetime) -> _Judged:
    rows = unpinned_rows(read_columns(store, model, start, end, _READ))
    rows = rows.filter(pc.invert(rows["shadow"])).combine_chunks()
    at = rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    if slo.slow_ms is None:
        return _Judged(at, _unanswered(rows["outputs"]))
    return _Judged(at, ~(rows["latency_ms"].cast(pa.float64()).to_numpy() <= slo.slow_ms))


def _unanswered(outputs: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Mark the rows that have no output, or one that is no finite number."""
    bad: NDArray[np.bool_] = pc.fill_null(pc.equal(pc.list_value_length(outputs), 0), True).to_numpy().copy()
    finite = pc.fill_null(pc.is_finite(pc.list_flatten(outputs).cast(pa.float64())), False)
    bad[pc.list_parent_indices(outputs).filter(pc.invert(finite)).to_numpy()] = True
    return bad


def _days(start: datetime, end: datetime) -> list[date]:
    first, last = (each.astimezone(UTC).date() for each in (start, end))
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _key(model: str, slo: Slo) -> str:
    """Key of the kept counts: another threshold has another, the target and window do not matter."""
    judged = hashlib.sha256(repr((slo.name, slo.slow_ms)).encode()).hexdigest()[:16]
    return f"error_budgets/{model}/{judged}.json"


def _kept(store: ObjectStore, model: str, slo: Slo, days: list[date]) -> Counts:
    """Read the counts of days that are over; none of the two last days is among them."""
    data = store.find(_key(model, slo))
    kept = {} if data is None else json.loads(data)
    return {name: (kept[name][0], kept[name][1]) for day in days if (name := day.isoformat()) in kept}


def _keep(store: ObjectStore, model: str, slo: Slo, counts: Counts, days: list[date]) -> None:
    """Keep counts, which any process computes alike from the log: the last one to write is as right as the first."""
    content = {day.isoformat(): counts[day.isoformat()] for day in days}
    store.put(_key(model, slo), json.dumps(content).encode())
