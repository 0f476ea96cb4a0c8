"""Comparison of two runs: how latency, errors and throughput changed, each with an interval.

Requests of one second share its stalls, so the windows of a run are resampled, in blocks of neighbours, and not its requests.
Source: Künsch, The jackknife and the bootstrap for general stationary observations, 1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toque.load.scenarios.verdicts.histogram import BINS, upper_ms
from toque.load.scenarios.verdicts.result import LoadRun

__all__ = ["Difference", "compare"]

_LEAST_WINDOWS = 20
_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "error_share", "requests_per_s")
_SHARES = (0.5, 0.9, 0.99)

Floats = npt.NDArray[np.float64]


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
