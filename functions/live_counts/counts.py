"""Counts of one window: for each version and arm its requests, errors, requests without an answer, and latencies."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from functions.live_counts.latency_bins import BINS


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
class ArmTally:
    """Counts of one version in one arm.

    requests: that the split sent to it. errors, missing, refused: units (or requests without a unit), as hashes, that met an
    error of ours; that got no usable answer; whose request did not fit the version (4xx), which is the caller's fault or that
    of a version with another signature. latency: (BINS,) of answers, a unit counting once a second.
    """

    requests: int = 0
    errors: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    latency: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def __add__(self, other: ArmTally) -> ArmTally:
        return ArmTally(
            self.requests + other.requests,
            self.errors | other.errors,
            self.missing | other.missing,
            self.refused | other.refused,
            self.latency + other.latency,
        )


NOTHING = ArmTally()


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Counts by split arm; windows add up to longer ones."""

    arms: Mapping[SplitArm, ArmTally] = field(default_factory=dict)

    def __add__(self, other: WindowCounts) -> WindowCounts:
        return WindowCounts(
            {
                arm: self.arms.get(arm, NOTHING) + other.arms.get(arm, NOTHING)
                for arm in {**self.arms, **other.arms}
            }
        )

    def of(self, *, version: int, entry: int | None = None, arms: Iterable[str] | None = None) -> ArmTally:
        """Add up a version's counts: of one split, or of all; of some arms, or of all."""
        names = None if arms is None else set(arms)
        chosen = [
            tally
            for arm, tally in self.arms.items()
            if arm.version == version and entry in (None, arm.entry) and (names is None or arm.arm in names)
        ]
        return reduce(ArmTally.__add__, chosen, NOTHING)


def encode(arms: Mapping[SplitArm, ArmTally]) -> str:
    """Encode the tally of one process as text."""
    return json.dumps(
        [
            [
                *arm,
                tally.requests,
                *map(_units, (tally.errors, tally.missing, tally.refused)),
                _sparse(tally.latency),
            ]
            for arm, tally in arms.items()
        ]
    )


def decode(text: str | bytes) -> WindowCounts:
    """Decode what `encode` made of a tally. Raises: ValueError if it is none."""
    found: dict[SplitArm, ArmTally] = {}
    for entry, version, arm, share, requests, errors, missing, refused, latency in json.loads(text):
        bins = np.zeros(BINS, dtype=np.int64)
        for index, count in latency:
            bins[index] = count
        found[SplitArm(entry, version, arm, share)] = ArmTally(
            requests, _hashes(errors), _hashes(missing), _hashes(refused), bins
        )
    return WindowCounts(found)


def _units(hashes: frozenset[int]) -> str:
    return base64.b64encode(np.fromiter(hashes, dtype="<u8", count=len(hashes)).tobytes()).decode()


def _hashes(text: str) -> frozenset[int]:
    return frozenset(np.frombuffer(base64.b64decode(text), dtype="<u8").tolist())


def _sparse(latency: npt.NDArray[np.int64]) -> list[list[int]]:
    found: list[Any] = [[int(index), int(latency[index])] for index in np.flatnonzero(latency)]
    return found
