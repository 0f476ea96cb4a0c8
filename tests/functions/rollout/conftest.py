# ruff: noqa: ARG002 - the fake has the registry's signatures
"""A folder store with a prediction log that a simulated model writes, and a registry of the traffic alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.prediction_log import LABELS_TABLE, PINNED, outcomes, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.rollout.controller import Rollouts
from toque.registry import ObjectStore, Refused, Stale, Table, TrafficRule, open_store
from toque.registry.models.traffic import OUTSIDE, Arm, Traffic, allocate, to_buckets

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL = "late"


class TrafficRegistry:
    """Keeps the traffic as the registry does, and can refuse, or be changed by hand at a chosen moment."""

    def __init__(self) -> None:
        self.now = Traffic(arms=(Arm(name="champion", version=1, share=1.0),), entry=10)
        self.statuses: dict[int, str] = {1: "READY", 2: "READY", 3: "READY"}
        self.refuse: str | None = None
        self.before_change: Any = None

    def traffic(self, model: str) -> Traffic:
        return self.now

    def find_version(self, model: str, version: int) -> Any:
        status = self.statuses.get(version)
        return None if status is None else SimpleNamespace(status=status)

    def set_traffic(
        self,
        model: str,
        arms: Mapping[str, tuple[int, float]],
        *,
        shadows: Sequence[int] = (),
        expected: int | None = None,
        reason: str = "",
        layer: None = None,
        rules: Sequence[TrafficRule] = (),
    ) -> Traffic:
        self._check(expected, guarded=bool(arms))
        spans = allocate({}, {name: to_buckets(share, what=name) for name, (_, share) in arms.items()})
        others = [
            Arm(name=name, version=version, share=share, buckets=spans[name])
            for name, (version, share) in arms.items()
        ]
        return self._become(self.now.champion.version, others, shadows, rules)

    def promote(self, model: str, version: int, *, reason: str = "", expected: int | None = None) -> Traffic:
        self._check(None, guarded=True)
        if expected is not None and expected != self.now.champion.version:
            raise Stale("champion", expected, self.now.champion.version)
        return self._become(version, [], [])

    def unmet(self, model: str, version: int) -> tuple[str, ...]:
        return (self.refuse,) if self.refuse else ()

    def by_hand(self, champion: int, *, shadows: Sequence[int] = ()) -> None:
        self._become(champion, [], shadows)

    def _check(self, expected: int | None, *, guarded: bool) -> None:
        if self.before_change is not None:
            change, self.before_change = self.before_change, None
            change()
        if guarded and self.refuse:
            raise Refused(self.refuse)
        if expected is not None and expected != self.now.entry:
            raise Stale("traffic entry", expected, self.now.entry)

    def _become(
        self,
        champion: int,
        others: list[Arm],
        shadows: Sequence[int],
        rules: Sequence[TrafficRule] = (),
    ) -> Traffic:
        first = Arm(name="champion", version=champion, share=1 - sum(arm.share for arm in others))
        self.now = Traffic(
            arms=(first, *others),
            shadows=tuple(shadows),
            salt="s",
            entry=self.now.entry + 1,
            rules=tuple(rules),
        )
        return self.now


@dataclass
class RolloutPlatform:
    """Serves by the traffic in force, one day at a time, and moves the clock.

    quality: for each version, how much of the truth its probabilities carry (0 none, 1 all).
    failing: share of a version's answers that have no output. lost: share that is answered and never logged.
    """

    store: ObjectStore
    model: str = MODEL
    registry: TrafficRegistry = field(default_factory=TrafficRegistry)
    quality: dict[int, float] = field(default_factory=lambda: {1: 0.5, 2: 0.9})
    failing: dict[int, float] = field(default_factory=dict)
    slow: dict[int, float] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    labelled: float = 1.0
    seed: int = 1
    now: datetime = START

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def clock(self) -> datetime:
        return self.now

    def rollouts(self, registry: Any = None) -> Rollouts:
        return Rollouts(
            self.model,
            store=self.store,
            registry=registry or self.registry,
            read=lambda start, end: outcomes(self.store, self.model, start, end, labelled_only=False),
            clock=self.clock,
            actor="test",
        )

    def serve_a_day(self, requests: int = 200) -> None:
        at = [self.now + DAY * (i + 0.5) / requests for i in range(requests)]
        ids = [f"{self.now:%j}-{i}" for i in range(requests)]
        signal = self._rng.normal(size=requests)
        truth = self._rng.random(requests) < 1 / (1 + np.exp(-1.5 * signal))
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(ids):
            arm = self.registry.now.assign(name)
            answer = self._row(name, arm.version, arm.name, at[i], signal[i], shadow=False)
            if not self.lost or self._rng.random() >= self.lost.get(arm.version, 0.0):
                rows.append(answer)
            if arm.name in ("champion", OUTSIDE):
                rows += [
                    self._row(name, v, "shadow", at[i], signal[i], shadow=True)
                    for v in self.registry.now.shadows
                ]
        Table(self.store, predictions_table(self.model)).append(
            pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"]
        )
        self._label(ids, truth, at)
        self.now += DAY

    def pinned(self, *, version: int, requests: int, arm: str = PINNED) -> None:
        """Somebody asks for a version by number, or comes to it by rule."""
        at = self.now - timedelta(minutes=1)
        rows = [self._row(f"{arm}-{i}", version, arm, at, 0.0, shadow=False) for i in range(requests)]
        Table(self.store, predictions_table(self.model)).append(
            pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"]
        )

    def _row(
        self, name: str, version: int, arm: str, at: datetime, signal: float, *, shadow: bool
    ) -> dict[str, Any]:
        p = 1 / (1 + np.exp(-1.5 * signal * self.quality[version]))
        failed = self._rng.random() < self.failing.get(version, 0.0)
        is_slow = self._rng.random() < self.slow.get(version, 0.0)
        return {
            "prediction_id": name,
            "model": self.model,
            "version": version,
            "arm": arm,
            "shadow": shadow,
            "unit": name,
            "predicted_at": at,
            "latency_ms": 500.0 if is_slow else 5.0,
            "numeric": [signal],
            "categorical": ["EWR"],
            "outputs": [float("nan")] if failed else [float(p)],
            "day": f"{at:%Y-%m-%d}",
        }

    def _label(self, ids: list[str], truth: np.ndarray, at: list[datetime]) -> None:
        rows = [
            {
                "prediction_id": name,
                "label": float(truth[i]),
                "observed_at": at[i] + timedelta(hours=5),
                "received_at": at[i] + timedelta(hours=5),
                "day": f"{at[i] + timedelta(hours=5):%Y-%m-%d}",
            }
            for i, name in enumerate(ids)
            if self._rng.random() < self.labelled
        ]
        if rows:
            Table(self.store, LABELS_TABLE).append(
                pa.Table.from_pylist(rows, schema=LABELS), partition_by=["day"]
            )


@pytest.fixture
def platform(tmp_path: Path) -> RolloutPlatform:
    return RolloutPlatform(open_store(f"file://{tmp_path}/store"))
