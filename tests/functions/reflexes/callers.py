"""Requests of callers that return, counted as predictors count them, and judged by the code that decides on Serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import numpy as np

from tests.conditions.units import Units, in_arm
from tests.functions.reflexes.simulation import BEGAN
from toque.functions.live_counts import (
    BINS,
    WINDOW_S,
    ArmTally,
    Failures,
    SplitArm,
    WindowCounts,
    bin_of,
    window_at,
)
from toque.functions.reflexes.champion import BASELINE_WINDOWS, SPANS, ServiceFinding, judge_champion
from toque.functions.reflexes.reflexes import EVERY_S
from toque.functions.rollout import Evidence, RolloutPolicy, RolloutState, decide
from toque.functions.rollout.evidence.live import LiveEvidence, live_evidence
from toque.functions.rollout.judge.decide import LIVE_RULES, Decision
from toque.registry.models.traffic import Arm, Traffic

CHAMPION, CANARY = 1, 2
BEFORE, SPLIT = 6, 7  # registry entries
STEP = timedelta(seconds=EVERY_S)


class Kept(dict[str, bytes]):
    """Store in memory."""

    find = dict.get

    def put(self, key: str, data: bytes) -> None:
        self[key] = data


class CallerWorld:
    """A champion, and a canary beside it from `begin` on; each unit stays in its arm.

    fails: by version, the share of requests that fail by the version's fault.
    """

    def __init__(
        self, units: Units, *, share: float, per_second: float, rng: np.random.Generator, salt: int = 1
    ) -> None:
        self.units, self.share, self.per_second, self.rng, self.salt = units, share, per_second, rng, salt
        self.now = BEGAN
        self.fails = {CHAMPION: 0.0, CANARY: 0.0}
        self.failed = 0  # requests of the canary
        self.counts: dict[int, WindowCounts] = {}
        self.store = Kept()
        self.state: RolloutState | None = None

    def begin(self, policy: RolloutPolicy | None = None) -> None:
        """Begin the canary."""
        self.state = RolloutState(
            rollout=3, champion=CHAMPION, challenger=CANARY, policy=policy or RolloutPolicy(canary_share=self.share),
            stage="canary", started_at=self.now, stage_since=self.now, canary_since=self.now, traffic_entry=SPLIT,
        )  # fmt: skip

    def serve(self, duration: timedelta = STEP) -> None:
        """Serve requests for a while, window by window."""
        until = self.now + duration
        while self.now < until:
            window = window_at(self.now.timestamp())
            end = min(until, datetime.fromtimestamp((window + 1) * WINDOW_S, self.now.tzinfo))
            requests = self.rng.poisson(self.per_second * (end - self.now).total_seconds())
            part = WindowCounts(self._arms(self.units.draw(self.rng, requests)))
            self.counts[window] = self.counts.get(window, WindowCounts()) + part
            self.now = end

    def _arms(self, ids: np.ndarray) -> dict[SplitArm, ArmTally]:
        if self.state is None:
            return {SplitArm(BEFORE, CHAMPION, "champion", 1.0): self._tally(CHAMPION, ids)}
        canary = in_arm(ids, self.share, salt=self.salt)
        tally = self._tally(CANARY, ids[canary])
        self.failed += tally.errors.requests
        return {
            SplitArm(SPLIT, CHAMPION, "champion", 1 - self.share): self._tally(CHAMPION, ids[~canary]),
            SplitArm(SPLIT, CANARY, "canary", self.share): tally,
        }

    def _tally(self, version: int, ids: np.ndarray) -> ArmTally:
        failed = self.units.fails(ids) | (self.rng.random(len(ids)) < self.fails[version])
        latency = np.zeros(BINS, dtype=np.int64)
        latency[bin_of(5.0)] = (~failed).sum()
        return ArmTally(len(ids), Failures.of(ids[failed].tolist()), latency=latency)

    def read(self, _model: str, windows: Iterable[int]) -> Mapping[int, WindowCounts]:
        return {window: self.counts.get(window, WindowCounts()) for window in windows}

    def live(self) -> LiveEvidence:
        """Read the evidence as a tick does."""
        traffic = Traffic(
            arms=(
                Arm(name="champion", version=CHAMPION, share=1 - self.share),
                Arm(
                    name="canary",
                    version=CANARY,
                    share=self.share,
                    buckets=((0, round(10_000 * self.share)),),
                ),
            ),
            entry=SPLIT,
        )
        assert self.state is not None
        live = live_evidence(self.read, "late", self.state, traffic, self.now, store=self.store)
        assert live is not None
        return live

    def tick(self) -> Decision:
        """Judge the canary by its last minutes."""
        assert self.state is not None
        evidence = Evidence(champion=CHAMPION, canary_share=self.share, live=self.live())
        return decide(self.state, evidence, self.state.policy, self.now, rules=LIVE_RULES)

    def watch(self) -> list[ServiceFinding]:
        """Judge the champion by its last minutes."""
        newest = window_at(self.now.timestamp())
        first = newest - max(SPANS)

        def of(start: int, end: int) -> ArmTally:
            parts = (self.counts.get(window, WindowCounts()) for window in range(start, end))
            return WindowCounts.sum(parts).of(version=CHAMPION)

        recent = [of(newest - span + 1, newest + 1) for span in SPANS]
        return judge_champion(recent, of(first - BASELINE_WINDOWS + 1, first + 1))
