"""Result of a load as it is kept, its verdict against objectives, and the comparison of two runs, with intervals.

Requests of one second share its stalls, so the windows of a run are resampled, in blocks of neighbours, and not its requests.
Source: Künsch, The jackknife and the bootstrap for general stationary observations, 1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.load.scenarios.scenario import Objectives, Scenario
from toque.load.scenarios.windows import BINS, Measured, Window, upper_ms

_LEAST_WINDOWS = 20
_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "error_share", "requests_per_s")
_SHARES = (0.5, 0.9, 0.99)
Floats = npt.NDArray[np.float64]


class LoadRun(BaseModel):
    """Run of a scenario with its measurements. windows: `Window.document` of each `window_s` seconds after the warm-up.

    aborted: the objective that ended it early, or empty. client_busy: share of a core that the busiest of locust's workers took;
    near 1 the client is what was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario_name: str
    scenario: Scenario
    url: str
    model: str
    started_at: datetime
    window_s: int
    windows: tuple[dict[str, Any], ...]
    problems: dict[str, int] = {}
    aborted: str = ""
    client_busy: float | None = None

    def each_window(self) -> list[Window]:
        """List its windows in order."""
        return [Window.of(document) for document in self.windows]

    def measured(self) -> Measured:
        """Sum up the whole run."""
        windows = self.each_window()
        return Measured.total(windows, seconds=len(windows) * self.window_s)

    def findings(self) -> list[Finding]:
        """Judge the run by its scenario's objectives."""
        return judge(self.measured(), self.scenario.objectives)

    @property
    def held(self) -> bool:
        """Whether every objective held and nothing ended it early."""
        return not self.aborted and all(finding.held for finding in self.findings())

    def metrics(self) -> dict[str, float]:
        """Figures of the run by name, those that are finite."""
        found = self.measured()
        figures = {
            "due": found.due, "answered": found.answered, "failed": found.failed, "dropped": found.dropped,
            "error_share": found.error_share, "requests_per_s": found.requests_per_s,
            "p50_ms": found.latency_ms(0.5), "p90_ms": found.latency_ms(0.9), "p99_ms": found.latency_ms(0.99),
        }  # fmt: skip
        return {name: float(value) for name, value in figures.items() if abs(value) < float("inf")}


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict on one objective: what was measured, and whether it held."""

    objective: str
    limit: float
    measured: float
    held: bool


def judge(measured: Measured, objectives: Objectives) -> list[Finding]:
    """Compare the measurements with every objective; without traffic none holds, since NaN never does."""
    at_most = {
        "p50_ms": (objectives.p50_ms, measured.latency_ms(0.5)),
        "p99_ms": (objectives.p99_ms, measured.latency_ms(0.99)),
        "error_share": (objectives.error_share, measured.error_share),
    }
    findings = [
        Finding(name, limit, value, value <= limit)
        for name, (limit, value) in at_most.items()
        if limit is not None
    ]
    least, rate = objectives.requests_per_s, measured.requests_per_s
    if least is not None:
        findings.append(Finding("requests_per_s", least, rate, rate >= least))
    return [Finding("requests", 1, measured.due, measured.due >= 1), *findings]


def broken(measured: Measured, objectives: Objectives) -> Finding | None:
    """Find the first objective that the last seconds of a run do not hold, to end it by.

    The rate is left out: a shape may ask for fewer requests in some seconds than in all.
    """
    checked = objectives.model_copy(update={"requests_per_s": None})
    return next((finding for finding in judge(measured, checked)[1:] if not finding.held), None)


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between two runs in one figure. change: after over before, of the error share after less before; low, high: its interval."""

    figure: str
    before: float
    after: float
    change: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves no difference out."""
        same = 0.0 if self.figure == "error_share" else 1.0
        return self.low > same or self.high < same

    @property
    def worse(self) -> bool:
        """Whether the difference is seen and one that a user would not want."""
        grew = self.change > (0.0 if self.figure == "error_share" else 1.0)
        return self.seen and grew != (self.figure == "requests_per_s")


def compare(
    before: LoadRun, after: LoadRun, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 7
) -> list[Difference]:
    """Compare two runs of the same shape. All intervals together hold with `confidence`.

    Raises: ValueError if the shapes differ, or a run has fewer than 20 windows.
    """
    if before.scenario.shape != after.scenario.shape:
        raise ValueError(
            f"the runs have different shapes: {before.scenario.shape} and {after.scenario.shape}; compare runs of one scenario"
        )
    rng = np.random.default_rng(seed)
    first, second = (_figures(run, resamples, rng) for run in (before, after))
    tail = (1 - confidence) / len(_FIGURES) / 2
    return [
        _difference(name, first[:, at], second[:, at], tail) for at, name in enumerate(_FIGURES)
    ]  # fmt: skip


def _difference(name: str, first: Floats, second: Floats, tail: float) -> Difference:
    """Compare one figure, whose whole value comes first and its resamples after it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        changes = second - first if name == "error_share" else second / first
    known = changes[1:][~np.isnan(changes[1:])]
    low, high = (
        np.quantile(known, [tail, 1 - tail], method="nearest") if len(known) else (-math.inf, math.inf)
    )
    return Difference(
        name, float(first[0]), float(second[0]), float(changes[0]), float(low), float(high)
    )  # fmt: skip


def _figures(run: LoadRun, resamples: int, rng: np.random.Generator) -> Floats:
    """Figures (1 + resamples, figures) of a run: of the whole, then of each resample."""
    windows = run.each_window()
    if len(windows) < _LEAST_WINDOWS:
        raise ValueError(
            f"a run of {len(windows)} windows is too short to compare; let it last {_LEAST_WINDOWS} s or more"
        )
    used = sorted({at for window in windows for at in window.bins}) or [0]
    place = {at: column for column, at in enumerate(used)}
    counts = np.zeros((len(windows), len(used)))
    for row, window in enumerate(windows):
        for at, count in window.bins.items():
            counts[row, place[at]] = count
    due = np.array([float(window.due) for window in windows])
    weights = np.vstack([np.ones(len(windows)), _block_weights(len(windows), resamples, rng)])
    bins, total = weights @ counts, weights @ due
    answered = bins.sum(axis=1)
    edges = np.array([*(upper_ms(at) for at in used if at < BINS), np.inf])
    cumulated = np.cumsum(bins, axis=1)
    latencies = [
        edges[np.minimum((cumulated < np.ceil(share * total - 1e-9)[:, None]).sum(axis=1), len(used))]
        for share in _SHARES
    ]
    seconds = weights.sum(axis=1) * run.window_s
    return np.stack([*latencies, 1 - answered / total, answered / seconds], axis=1)


def _block_weights(count: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each resample (resamples, windows) takes each window; blocks go round the end, so that all are as likely."""
    length = max(1, math.ceil(count ** (1 / 3)))
    starts = rng.integers(0, count, size=(resamples, math.ceil(count / length)))
    drawn = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :count] % count
    numbered = drawn + count * np.arange(resamples)[:, None]
    return np.bincount(numbered.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)
