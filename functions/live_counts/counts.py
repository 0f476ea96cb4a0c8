"""Counts of one window: for each version and arm its requests, those that failed and of which units, and latencies."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toque.functions.live_counts.latency_bins import BINS


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
    return [*arm, tally.requests, *units, _sparse(tally.latency), failed]


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


def _sparse(latency: npt.NDArray[np.int64]) -> list[list[int]]:
    bins: list[Any] = [[int(index), int(latency[index])] for index in np.flatnonzero(latency)]
    return bins
