"""Counts of one window: for each version and arm its requests, those that failed and of which units, and latencies.

Bins of latency: eight to a doubling, from 8 µs to 131 s, so that a bin is 9 % wide and tallies add exactly. Windows are told by
the clocks of several machines, so each is checked against Redis's.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toque.clusters.redis_clients import primaries

PER_DOUBLING = 8
_LOWEST_BIN = -7 * PER_DOUBLING  # 2^-7 ms
BINS = 24 * PER_DOUBLING
WINDOW_S = 60
KEPT_S = 2 * 3600  # of a window, after its last count
_PREFIX = "toque:live:"
MOST_SKEW_S = 10.0
"""How far clocks may differ: beyond it counts of the last minutes come late to who judges them, or never."""
_CHECK_EVERY_S = 60.0
_logger = logging.getLogger(__name__)


class SplitArm(NamedTuple):
    """Arm of one traffic split, and the version that answered.

    entry: of the registry, which set the split; counts of different splits have different keys, so nobody pools them by
    mistake. share: the arm's declared share of the split.
    """

    entry: int
    version: int
    arm: str
    share: float


@dataclass(frozen=True, slots=True)
class Failures:
    """Requests that ended badly in one way, and their units: a rate divides requests by requests, a test of units counts units.

    requests: all of them. units: how many of them each unit met (or a request without a unit), by its hash; of one process and
    window the first units only, so they may add up to fewer.
    """

    requests: int = 0
    units: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, units: Iterable[int]) -> Failures:
        """Take failures from the unit of each."""
        counts: defaultdict[int, int] = defaultdict(int)
        for unit in units:
            counts[unit] += 1
        return cls(sum(counts.values()), dict(counts))

    @classmethod
    def sum(cls, failures: Iterable[Failures]) -> Failures:
        """Add up failures; a unit stays one."""
        requests, units = 0, defaultdict[int, int](int)
        for part in failures:
            requests += part.requests
            for unit, count in part.units.items():
                units[unit] += count
        return cls(requests, dict(units))

    def __add__(self, other: Failures) -> Failures:
        return Failures.sum((self, other))

    @property
    def repeats(self) -> int:
        """Requests, but for the first, of the unit that met most of them: one broken caller repeats itself."""
        return max(self.units.values(), default=1) - 1


@dataclass(frozen=True, slots=True)
class ArmTally:
    """Counts of one version in one arm.

    requests: that the split sent to it. errors, missing, refused: those that met an error of ours; that got no usable answer;
    that it refused (4xx), though another version would have answered; what a caller got wrong is not counted.
    latency: (BINS,) of answers, a unit counting once a second.
    """

    requests: int = 0
    errors: Failures = Failures()
    missing: Failures = Failures()
    refused: Failures = Failures()
    latency: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    @classmethod
    def sum(cls, tallies: Iterable[ArmTally]) -> ArmTally:
        """Add up the tallies of one arm."""
        parts = list(tallies)
        return cls(
            sum(tally.requests for tally in parts),
            Failures.sum(tally.errors for tally in parts),
            Failures.sum(tally.missing for tally in parts),
            Failures.sum(tally.refused for tally in parts),
            np.sum([np.zeros(BINS, dtype=np.int64), *(tally.latency for tally in parts)], axis=0),
        )

    def __add__(self, other: ArmTally) -> ArmTally:
        return ArmTally.sum((self, other))


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Counts by split arm; windows add up to longer ones."""

    arms: Mapping[SplitArm, ArmTally] = field(default_factory=dict)

    @classmethod
    def sum(cls, counts: Iterable[WindowCounts]) -> WindowCounts:
        """Add up counts, of processes or of windows."""
        parts: defaultdict[SplitArm, list[ArmTally]] = defaultdict(list)
        for part in counts:
            for arm, tally in part.arms.items():
                parts[arm].append(tally)
        return cls({arm: ArmTally.sum(tallies) for arm, tallies in parts.items()})

    def __add__(self, other: WindowCounts) -> WindowCounts:
        return WindowCounts.sum((self, other))

    def of(self, *, version: int, entry: int | None = None, arms: Iterable[str] | None = None) -> ArmTally:
        """Add up a version's counts: of one split, or of all; of some arms, or of all."""
        names = None if arms is None else set(arms)
        return ArmTally.sum(
            tally
            for arm, tally in self.arms.items()
            if arm.version == version and entry in (None, arm.entry) and (names is None or arm.arm in names)
        )


def encode(arms: Mapping[SplitArm, ArmTally]) -> str:
    """Encode the tally of one process as text."""
    return json.dumps([_encoded(arm, tally) for arm, tally in arms.items()])


def decode(text: str | bytes) -> WindowCounts:
    """Decode what `encode` made of a tally. Raises: ValueError if the text is something else."""
    arms: dict[SplitArm, ArmTally] = {}
    for entry, version, arm, share, requests, errors, missing, refused, latency, *failed in json.loads(text):
        bins = np.zeros(BINS, dtype=np.int64)
        for index, count in latency:
            bins[index] = count
        # A process of 0.1 sends units alone: each has met one failure at least.
        ends = zip((errors, missing, refused), *(failed or [[None] * 3]), strict=True)
        by_end = [_failures(units, counts) for units, counts in ends]
        arms[SplitArm(entry, version, arm, share)] = ArmTally(
            requests, by_end[0], by_end[1], by_end[2], latency=bins
        )
    return WindowCounts(arms)


def _encoded(arm: SplitArm, tally: ArmTally) -> list[Any]:
    ends = (tally.errors, tally.missing, tally.refused)
    units = [_base64(failures.units.keys(), "<u8", len(failures.units)) for failures in ends]
    failed = [
        [failures.requests, _base64(failures.units.values(), "<u4", len(failures.units))] for failures in ends
    ]
    latency = [[int(index), int(tally.latency[index])] for index in np.flatnonzero(tally.latency)]
    return [*arm, tally.requests, *units, latency, failed]


def _failures(units: str, failed: tuple[int, str] | None) -> Failures:
    if failed is None:
        return Failures.of(_numbers(units, "<u8"))
    requests, counts = failed
    pairs = zip(_numbers(units, "<u8"), _numbers(counts, "<u4"), strict=True)
    return Failures(requests, dict(pairs))


def _base64(numbers: Iterable[int], dtype: str, count: int) -> str:
    return base64.b64encode(np.fromiter(numbers, dtype=dtype, count=count).tobytes()).decode()


def _numbers(text: str, dtype: str) -> list[int]:
    numbers: list[int] = np.frombuffer(base64.b64decode(text), dtype=dtype).tolist()
    return numbers


def bin_of(ms: float) -> int:
    """Return the bin of a latency; those beyond the ends, and NaN, count in the outermost."""
    if not ms > 0.0:
        return 0 if ms <= 0.0 else BINS - 1
    if ms == math.inf:
        return BINS - 1
    return min(max(math.floor(math.log2(ms) * PER_DOUBLING) - _LOWEST_BIN, 0), BINS - 1)


def lower_edge_ms(index: int) -> float:
    """Return the lower edge of a bin."""
    edge: float = 2.0 ** ((index + _LOWEST_BIN) / PER_DOUBLING)
    return edge


def quantile_ms(counts: npt.NDArray[np.int64], q: float) -> float:
    """Return the q-quantile of binned latencies, as the middle of its bin; NaN without a value."""
    total = int(counts.sum())
    if not total:
        return math.nan
    index = int(np.searchsorted(np.cumsum(counts), math.floor(total * q), side="right"))
    middle: float = lower_edge_ms(min(index, BINS - 1)) * 2.0 ** (0.5 / PER_DOUBLING)
    return middle


def slower(counts: npt.NDArray[np.int64], factor: float) -> npt.NDArray[np.int64]:
    """Return the bins of latencies that are `factor` times as long, rounded down to whole bins; factor: 1 or more."""
    by = math.floor(math.log2(factor) * PER_DOUBLING + 1e-9)
    if not by:
        return counts
    moved = np.zeros_like(counts)
    moved[by:] = counts[:-by]
    moved[-1] += counts[-by:].sum()
    return moved


def window_at(seconds: float) -> int:
    """Return the index of the window that holds a moment, given in seconds since the epoch."""
    return int(seconds // WINDOW_S)


def counts_key(workspace: str, model: str, window: int) -> str:
    """Return the key of a hash with one field for each process: its tally of one model in one window."""
    return f"{_PREFIX}{{{workspace}/{model}}}:{window}"


def models_key(workspace: str) -> str:
    """Return the key of the sorted set of a workspace's models, by the time of their last count."""
    return f"{_PREFIX}models:{workspace}"


class ClockCheck:
    """Says in the log, once a minute, that the clock here and Redis's differ by more than `MOST_SKEW_S`. client: of Redis."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._next = float("-inf")

    def look(self, now: float) -> float | None:
        """Compare the clocks; returns how far this one is ahead, or None where it was done within the minute. Raises: RedisError."""
        if self._next - _CHECK_EVERY_S <= now < self._next:
            return None
        self._next = now + _CHECK_EVERY_S
        seconds, microseconds = primaries(self._client)[0].time()
        skew_s = now - (seconds + microseconds / 1e6)
        if abs(skew_s) > MOST_SKEW_S:
            _logger.error(
                "this machine's clock is %.0f s %s Redis's: the last minutes of models are judged late or not at all; "
                "synchronise the clocks (docs/runbooks/clock-skewed.md)",
                abs(skew_s),
                "ahead of" if skew_s > 0 else "behind",
            )
        return float(skew_s)
