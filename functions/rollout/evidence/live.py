"""Live evidence of a rollout: what both versions gave their users in the last minutes, with no label and no logged row.

Counts are kept by the registry entry that set the split, so those of different shares are never pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from functions.live_counts import BINS, KEPT_S, WINDOW_S, ArmTally, WindowCounts, total, window_at
from functions.rollout.state import RolloutState
from functions.rollout.traffic import CurrentTraffic, canary_share_of

ReadLive = Callable[[str, Iterable[int]], Mapping[int, WindowCounts]]  # model, windows -> their counts
SHADOW = "shadow"
GUARD_WINDOWS = 5
"""Windows after which the next guard begins; each runs for twice as long."""


class LiveCounts(BaseModel):
    """Counts of one version in one split. errors, missing: units that met one; latency: answers by bin."""

    model_config = ConfigDict(frozen=True)

    requests: int = 0
    errors: int = 0
    missing: int = 0
    latency: dict[int, int] = {}

    @classmethod
    def of(cls, tally: ArmTally) -> Self:
        """Take the counts of a tally; a request that does not fit the version is its error here, as on the other arm."""
        return cls(
            requests=tally.requests,
            errors=len(tally.errors | tally.refused),
            missing=len(tally.missing),
            latency={int(index): int(tally.latency[index]) for index in np.flatnonzero(tally.latency)},
        )

    @property
    def unanswered(self) -> int:
        """Number of units that met an error or no usable answer."""
        return self.errors + self.missing

    def bins(self) -> npt.NDArray[np.int64]:
        """Return the latencies as counts of all bins."""
        counts = np.zeros(BINS, dtype=np.int64)
        for index, count in self.latency.items():
            counts[index] = count
        return counts


class LiveEvidence(BaseModel):
    """Live counts of the split that is in force.

    champion, challenger: of the guard that runs, which began five to ten minutes ago. split_champion, split_challenger: since the
    split was set, two hours at most.
    """

    model_config = ConfigDict(frozen=True)

    champion: LiveCounts = LiveCounts()
    challenger: LiveCounts = LiveCounts()
    split_champion: LiveCounts = LiveCounts()
    split_challenger: LiveCounts = LiveCounts()


def guard_at(at: datetime) -> int:
    """Number of the guard that begins in the windows around a moment; the one before still runs."""
    return window_at(at.timestamp()) // GUARD_WINDOWS


def live_evidence(
    read: ReadLive, model: str, state: RolloutState, traffic: CurrentTraffic, now: datetime
) -> LiveEvidence | None:
    """Read the live counts of the challenger and of the champion beside it; None where the split has no such arm."""
    if state.stage == "canary" and canary_share_of(traffic, state) is None:
        return None
    newest = window_at(now.timestamp())
    oldest = max(window_at(state.split_since.timestamp()), newest - KEPT_S // WINDOW_S + 1)
    counts = read(model, range(oldest, newest + 1))
    began = guard_at(now) * GUARD_WINDOWS - GUARD_WINDOWS
    recent = total(each for window, each in counts.items() if window >= began)
    champions = [traffic.arms[0].name]
    challengers = [SHADOW]
    if state.stage == "canary":
        challengers = [arm.name for arm in traffic.arms[1:] if arm.version == state.challenger]

    def of(found: WindowCounts) -> tuple[LiveCounts, LiveCounts]:
        return (
            LiveCounts.of(found.of(version=state.champion, entry=traffic.entry, arms=champions)),
            LiveCounts.of(found.of(version=state.challenger, entry=traffic.entry, arms=challengers)),
        )

    (champion, challenger), (split_champion, split_challenger) = of(recent), of(total(counts.values()))
    return LiveEvidence(
        champion=champion,
        challenger=challenger,
        split_champion=split_champion,
        split_challenger=split_challenger,
    )
