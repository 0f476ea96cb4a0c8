"""Operations monitor: latency, errors, saturation and cost of a model, cohort by cohort, from the prediction log.

A limit is on a share of requests: those slower than it allows, those without an answer. It is broken when the share is above
the limit by more than chance explains, so that three slow requests of a quiet night wake nobody. It never leads to a retrain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from scipy import special

from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import CohortLength, Delay, Lookback, RequestMonitor
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.registry import ModelVersion

Subject = Literal["errors", "latency", "saturation"]
_CHANCE = 1e-3  # p-value above which a share breaks no limit
_SLOWEST = 0.01  # share of requests that a limit on the 99th percentile leaves


class OperationsMonitor(RequestMonitor):
    """Settings of the operations monitor."""

    kind: Literal["operations"] = Field(default="operations", description="Kind of the monitor.")
    cohort: CohortLength = timedelta(hours=1)
    delay: Delay = timedelta(minutes=10)
    lookback: Lookback = timedelta(days=1)
    max_error_share: float = Field(
        default=0.01, ge=0, lt=1, description="Share of requests without an answer that is allowed."
    )
    p99_ms: float | None = Field(
        default=None,
        gt=0,
        description=(
            "Limit on the 99th percentile of the time in the replica, in "
            "milliseconds; not judged unless given."
        ),
    )
    capacity: float | None = Field(
        default=None,
        gt=0,
        description="Requests that all replicas can work on at a time; saturation is not judged unless given.",
    )
    max_busy: float = Field(
        default=0.8, gt=0, le=1, description="Share of the capacity that may be in use on average."
    )
    cpus: float = Field(
        default=1.0,
        gt=0,
        description="CPUs of a replica at work on one request, from which with `TOQUE_PRICES` the cost is reckoned.",
    )
    min_requests: int = Field(default=20, ge=1, description="Requests below which a cohort is not judged.")


class OperationsState(CohortState):
    """State of the operations monitor. broken: the limits that were broken when they were last judged."""

    broken: tuple[Subject, ...] = ()

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the broken limits, so that their alarms end."""
        return self.model_copy(update={"next_cohort": moved(self.next_cohort)})


@dataclass(frozen=True, slots=True)
class Served:
    """Figures of one cohort of requests.

    slow: requests above the limit. busy: requests at work at a time, on average. cost: None without prices.
    """

    index: int
    requests: int
    errors: int
    slow: int
    busy: float
    percentiles: tuple[float, float, float]
    cost: float | None

    @classmethod
    def of(cls, index: int, rows: pa.Table, monitor: OperationsMonitor, cpu_hour: float | None) -> Self:
        """Sum up what was logged in a cohort, without shadows. cpu_hour: price of a CPU for an hour."""
        requests_table = _requests(rows)
        times = requests_table["latency_ms"].drop_null().to_numpy()
        spent_s = float(times.sum()) / 1e3
        found = np.percentile(times, [50, 95, 99]) if len(times) else np.full(3, np.nan)
        return cls(
            index,
            requests=requests_table.num_rows,
            errors=int(pc.sum(requests_table["failed"]).as_py() or 0),
            slow=0 if monitor.p99_ms is None else int((times > monitor.p99_ms).sum()),
            busy=spent_s / monitor.cohort.total_seconds(),
            percentiles=(float(found[0]), float(found[1]), float(found[2])),
            cost=None if cpu_hour is None else spent_s * monitor.cpus / 3600 * cpu_hour,
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """Limit that was judged, and whether it is broken."""

    subject: Subject
    broken: bool
    value: float
    limit: float
    text: str


def judge(served: Served, monitor: OperationsMonitor) -> list[Limit]:
    """Judge the limits on one cohort; empty with fewer than `min_requests`."""
    return list(_limits(served, monitor)) if served.requests >= monitor.min_requests else []


def _limits(served: Served, monitor: OperationsMonitor) -> Iterator[Limit]:
    share = served.errors / served.requests
    text = f"{served.errors} of {served.requests} requests had no answer ({share:.2%}); at most {monitor.max_error_share:.2%}"
    broken = _above(served.errors, served.requests, monitor.max_error_share)
    yield Limit("errors", broken, share, monitor.max_error_share, text)
    if monitor.p99_ms is not None:
        slow = served.slow / served.requests
        text = (
            f"{slow:.2%} of {served.requests} requests took more than {monitor.p99_ms:g} ms, at most {_SLOWEST:.0%}; "
            f"99th percentile {served.percentiles[2]:.1f} ms"
        )
        broken = _above(served.slow, served.requests, _SLOWEST)
        yield Limit("latency", broken, served.percentiles[2], monitor.p99_ms, text)
    if monitor.capacity is not None:
        used = served.busy / monitor.capacity
        text = f"{served.busy:.2f} requests at work at a time, {used:.0%} of {monitor.capacity:g}; at most {monitor.max_busy:.0%}"
        yield Limit("saturation", used > monitor.max_busy, used, monitor.max_busy, text)


def watch_service(
    run: MonitorRun,
    champion: ModelVersion,
    monitor: OperationsMonitor,
    read: ReadRows,
    cpu_hour: float | None,
) -> MonitorResult:
    """Judge each cohort that is due, and raise and close alarms.

    read: logged predictions in [start, end). cpu_hour: price of a CPU for an hour, None where it is not set.
    """
    course = Course(run, champion, monitor)
    grid, due = course.grid, course.due
    state = course.load(OperationsState) or OperationsState(next_cohort=course.begin)
    first, text = state.next_cohort, "too few requests to judge"
    if first >= due:
        return course.nothing_due(first)
    rows = read(grid.start(first), grid.start(due))
    rows = rows.filter(pc.invert(rows["shadow"])).sort_by([("predicted_at", "ascending")])
    for index, part in grid.cut(rows, first, due):
        served = Served.of(index, part, monitor, cpu_hour)
        limits = judge(served, monitor)
        if served.requests:
            _find(course, served, limits)
        for limit in limits:
            if limit.broken != (limit.subject in state.broken):
                course.alarm(
                    f"{limit.subject}/{index}{'' if limit.broken else '/recovered'}",
                    limit.subject,
                    index,
                    text=limit.text,
                    statistic=limit.value,
                    threshold=limit.limit,
                    recovered=not limit.broken,
                )
        unjudged = set(state.broken) - {limit.subject for limit in limits}
        broken = unjudged | {limit.subject for limit in limits if limit.broken}
        state = OperationsState(next_cohort=index + 1, broken=tuple(sorted(broken)))
        text = "; ".join(limit.text for limit in limits) or text
    return course.conclude(state, range(first, due), text)


def _requests(rows: pa.Table) -> pa.Table:
    """Group rows by request, with its time and whether any row has no answer; rows of a batch are called `{id}:{row}`."""
    ids = pc.replace_substring_regex(rows["prediction_id"], pattern=r":\d+$", replacement="")
    failed = pc.fill_null(pc.equal(pc.list_value_length(rows["outputs"]), 0), True)
    table = pa.table({"id": ids, "latency_ms": rows["latency_ms"].cast(pa.float64()), "failed": failed})
    grouped = table.group_by("id").aggregate([("latency_ms", "max"), ("failed", "any")])
    return pa.table({"latency_ms": grouped["latency_ms_max"], "failed": grouped["failed_any"]})


def _above(hits: int, requests: int, limit: float) -> bool:
    """Test whether so many hits are more than a share of `limit` explains.

    Source: the exact binomial test, Clopper and Pearson 1934.
    """
    if hits <= limit * requests:
        return False
    return limit == 0 or float(special.bdtrc(hits - 1, requests, limit)) < _CHANCE


def _find(course: Course[OperationsMonitor], served: Served, limits: list[Limit]) -> None:
    """Add a finding on each figure of a cohort with requests, and on each judged limit."""
    figures = dict(zip(("p50_ms", "p95_ms", "p99_ms"), served.percentiles, strict=True))
    figures |= {"requests": float(served.requests), "busy": served.busy}
    if served.cost is not None:
        figures["cost"] = served.cost
    for name, value in figures.items():
        course.find(name, "ok", served.index, rows=served.requests, value=value)
    for limit in limits:
        course.find(
            limit.subject,
            "alarm" if limit.broken else "ok",
            served.index,
            rows=served.requests,
            value=limit.value,
            threshold=limit.limit,
            text=limit.text,
        )
