"""Live evidence of a rollout: what both versions gave their users in the last minutes, with no label and no logged row.

Counts are kept by the registry entry that set the split, so those of different shares are never pooled. What is *shown* of a
split is summed from a fixed start: the windows that Redis soon forgets are kept in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.live_counts import BINS, KEPT_S, WINDOW_S, ArmTally, WindowCounts, window_at
from toque.functions.rollout.evidence.slots import KeptSums, SumsStore
from toque.functions.rollout.state import RolloutState
from toque.functions.rollout.traffic import CurrentTraffic, canary_share_of
from toque.functions.stats.comparison.cluster_sums import Pooled
from toque.registry.models.traffic import CHAMPION, HOLDOUT, OUTSIDE

ReadLive = Callable[[str, Iterable[int]], Mapping[int, WindowCounts]]  # model, windows -> their counts
LiveEvent = Literal["errors", "missing"]
SHADOW = "shadow"
GUARD_WINDOWS = 5
"""Windows after which the next guard begins; each runs for twice as long."""
_LATEST_WINDOWS = (1, 2)  # what has just begun is soon a large part of them
_READ_WINDOWS = KEPT_S // WINDOW_S
_KEEP_EVERY = 30  # windows: a write to the store each half an hour
_LATE_WINDOWS = 2  # newest ones, which may still get counts
_TIMES_USUAL = 2.0  # failures of a unit, as multiples of its own level, that are no news
_MAX_USUAL = 256  # units whose level is kept


class LiveCounts(Pooled):
    """Counts of one version in one split.

    errors, missing: units that met one; summed over half hours, where more than two were added up. error_requests,
    missing_requests: requests that did; None of evidence that was recorded before they were counted. repeats: of unanswered
    requests, those but the first of the unit that met most. usual: unanswered requests that units met as often on the champion
    before, as a caller does that is broken itself. latency: answers by bin.
    """

    requests: int = 0
    errors: int = 0
    missing: int = 0
    error_requests: int | None = None
    missing_requests: int | None = None
    repeats: int = 0
    usual: int = 0
    latency: dict[int, int] = Field(default={})

    @classmethod
    def of(cls, tally: ArmTally, usual: Mapping[int, float] | None = None) -> Self:
        """Take the counts of a tally; a request that the version refuses is its error here.

        usual: failures by unit that would be usual.
        """
        errors = tally.errors + tally.refused
        both = errors + tally.missing
        return cls(
            requests=tally.requests,
            errors=len(errors.units),
            missing=len(tally.missing.units),
            error_requests=errors.requests,
            missing_requests=tally.missing.requests,
            repeats=both.repeats,
            usual=int(sum(min(both.units.get(unit, 0), level) for unit, level in (usual or {}).items())),
            latency={int(index): int(tally.latency[index]) for index in np.flatnonzero(tally.latency)},
        )

    def __add__(self, other: Self) -> Self:
        """Add counts of another time; both have counts of requests."""
        bins = self.latency.keys() | other.latency.keys()
        return self.pooled(
            other,
            error_requests=self.failed("errors") + other.failed("errors"),
            missing_requests=self.failed("missing") + other.failed("missing"),
            latency={
                index: self.latency.get(index, 0) + other.latency.get(index, 0) for index in sorted(bins)
            },
        )

    @property
    def counts_requests(self) -> bool:
        """Whether the requests that failed were counted, beside their units."""
        return self.error_requests is not None

    def failed(self, event: LiveEvent) -> int:
        """Number of requests that met an event; 0 where they were not counted."""
        return (self.error_requests if event == "errors" else self.missing_requests) or 0

    @property
    def unanswered(self) -> int:
        """Number of requests that met an error or no usable answer; of units, where requests were not counted."""
        if not self.counts_requests:
            return self.errors + self.missing
        return self.failed("errors") + self.failed("missing")

    def bins(self) -> npt.NDArray[np.int64]:
        """Return the latencies as counts of all bins."""
        counts = np.zeros(BINS, dtype=np.int64)
        for index, count in self.latency.items():
            counts[index] = count
        return counts


class LiveEvidence(BaseModel):
    """Live counts of the split that is in force.

    champion, challenger: of the guard that runs, which began five to ten minutes ago. split_champion, split_challenger: since the
    split was set. latest: champion and challenger of the running minute, and of it and the one before; without latencies.
    """

    model_config = ConfigDict(frozen=True)

    champion: LiveCounts = LiveCounts()
    challenger: LiveCounts = LiveCounts()
    split_champion: LiveCounts = LiveCounts()
    split_challenger: LiveCounts = LiveCounts()
    latest: tuple[tuple[LiveCounts, LiveCounts], ...] = ()


class SplitSums(KeptSums):
    """Live counts of one split from its start up to `next_window`, which is not among them.

    usual: failures that units met on the champion in a window, in the two hours before; by hash.
    """

    next_window: int
    champion: LiveCounts = LiveCounts()
    challenger: LiveCounts = LiveCounts()
    usual: dict[int, float] = Field(default={})


def guard_at(at: datetime) -> int:
    """Number of the guard that begins in the windows around a moment; the one before still runs."""
    return window_at(at.timestamp()) // GUARD_WINDOWS


def live_evidence(
    read: ReadLive,
    model: str,
    state: RolloutState,
    traffic: CurrentTraffic,
    now: datetime,
    *,
    store: SumsStore,
) -> LiveEvidence | None:
    """Read the live counts of the challenger and of the champion beside it; None where the split has no such arm.

    store: keeps the sums of the split under `rollouts/{model}/evidence/`, so that what is asked of them again and again is
    asked from one start.
    """
    if state.stage == "canary" and canary_share_of(traffic, state) is None:
        return None
    newest = window_at(now.timestamp())
    counts = read(model, range(newest - _READ_WINDOWS + 1, newest + 1))
    arms = _Arms.of(state, traffic)
    sums = _kept_sums(store, model, arms, counts, newest)
    began = guard_at(now) * GUARD_WINDOWS - GUARD_WINDOWS
    champion, challenger = arms.counts(counts, max(began, arms.since), sums.usual)
    latest = [arms.counts(counts, max(newest - span + 1, arms.since), sums.usual) for span in _LATEST_WINDOWS]
    later_champion, later_challenger = arms.counts(counts, sums.next_window, sums.usual)
    return LiveEvidence(
        champion=champion,
        challenger=challenger,
        split_champion=sums.champion + later_champion,
        split_challenger=sums.challenger + later_challenger,
        latest=tuple(tuple(part.model_copy(update={"latency": {}}) for part in pair) for pair in latest),
    )


@dataclass(frozen=True, slots=True)
class _Arms:
    """Arms of a split that are compared. since: window in which it was set."""

    state: RolloutState
    entry: int
    champion: str
    challengers: tuple[str, ...]
    since: int

    @classmethod
    def of(cls, state: RolloutState, traffic: CurrentTraffic) -> Self:
        challengers: tuple[str, ...] = (SHADOW,)
        if state.stage == "canary":
            challengers = tuple(arm.name for arm in traffic.arms[1:] if arm.version == state.challenger)
        since = window_at(state.split_since.timestamp())
        return cls(state, traffic.entry, traffic.arms[0].name, challengers, since)

    def counts(
        self,
        counts: Mapping[int, WindowCounts],
        start: int,
        usual: Mapping[int, float],
        end: int | None = None,
    ) -> tuple[LiveCounts, LiveCounts]:
        """Count champion and challenger in the windows from `start` to before `end`. usual: failures of a unit in a window."""
        windows = [window for window in counts if window >= start and (end is None or window < end)]
        span = WindowCounts.sum(counts[window] for window in windows)
        champion = span.of(version=self.state.champion, entry=self.entry, arms=(self.champion,))
        challenger = span.of(version=self.state.challenger, entry=self.entry, arms=self.challengers)
        levels = {unit: _TIMES_USUAL * level * len(windows) for unit, level in usual.items()}
        return LiveCounts.of(champion), LiveCounts.of(challenger, levels)

    def usual_failures(self, counts: Mapping[int, WindowCounts]) -> dict[int, float]:
        """Count how often units failed on the champion in a window before the split, of the units that failed most."""
        earlier = [part for window, part in counts.items() if window < self.since and part.arms]
        champion = WindowCounts.sum(earlier).of(
            version=self.state.champion, arms=(CHAMPION, OUTSIDE, HOLDOUT)
        )
        failures = (champion.errors + champion.refused + champion.missing).units
        most = sorted(failures, key=failures.__getitem__, reverse=True)[:_MAX_USUAL]
        return {unit: failures[unit] / len(earlier) for unit in most}

    def key(self, model: str) -> str:
        """Key of the sums of this split and challenger."""
        version, rollout = self.state.challenger, self.state.rollout
        return f"rollouts/{model}/evidence/{rollout:08d}-{version}-live{self.entry}.json"


def _kept_sums(
    store: SumsStore, model: str, arms: _Arms, counts: Mapping[int, WindowCounts], newest: int
) -> SplitSums:
    """Find the sums of a split, and keep in them what Redis forgets next; made anew by whoever looks first."""
    key = arms.key(model)
    sums = SplitSums.find(store, key)
    if sums is None:
        start = max(arms.since, newest - _READ_WINDOWS + 1)
        sums = SplitSums(next_window=start, usual=arms.usual_failures(counts))
    elif newest - _LATE_WINDOWS - sums.next_window < _KEEP_EVERY:
        return sums
    end = max(newest - _LATE_WINDOWS, sums.next_window)
    champion, challenger = arms.counts(counts, sums.next_window, sums.usual, end)
    sums = sums.model_copy(
        update={
            "next_window": end,
            "champion": sums.champion + champion,
            "challenger": sums.challenger + challenger,
        }
    )
    sums.put(store, key)
    return sums
