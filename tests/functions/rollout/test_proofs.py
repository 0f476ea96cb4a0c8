"""Proofs that take minutes: equal challengers on recorded flights, a ticker killed again and again, and years later."""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.rollout.conftest import DAY, MODEL, START, RolloutPlatform, TrafficRegistry
from tests.functions.rollout.victim import rollouts_of, tick
from tests.ray_apps.flights_driver import Flights, load_flights
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.policy import RolloutPolicy
from toque.registry import Registry, open_store

_logger = logging.getLogger(__name__)
KILLS = 50
RUNS = 100
A_DAY = 100
POLICY = RolloutPolicy(planned_labels=2_000, shadow_min_labels=200)


class Recorded:
    """Flights whose answers by two equal versions are on record; the traffic in force says which rows there are.

    The champion's log odds lie above those of a table by a noise, the challenger's below by the same: of one sign a flight,
    and of one a day, so that losses of a day hang together. Which is better is a coin toss, in the mean they are equal.
    """

    def __init__(self, flights: Flights, odds: np.ndarray, registry: TrafficRegistry, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.flights, self.registry = flights, registry
        self.now, self.first = START, int(rng.integers(0, 190))
        self.noise = 0.2 * rng.choice([-1, 1], len(odds)) + 0.2 * rng.choice([-1, 1], 400)[flights.day]
        self.odds = odds
        self.days: list[tuple[datetime, pa.Table]] = []

    def serve_a_day(self) -> None:
        """Answer for a day's flights."""
        day = self.first + len(self.days)
        rows = np.flatnonzero(self.flights.day == day)
        rows = rows[np.linspace(0, len(rows) - 1, A_DAY).astype(int)]
        names = [f"{day}-{row}" for row in rows]
        versions = np.array([self.registry.now.assign(name).version for name in names])
        shadowed = np.flatnonzero((versions == 1) & (2 in self.registry.now.shadows))
        index = np.concatenate([np.arange(A_DAY), shadowed])
        version = np.concatenate([versions, np.full(len(shadowed), 2)])
        logit = self.odds[rows][index] + np.where(version == 1, 1, -1) * self.noise[rows][index]
        at = [self.now + DAY * (n + 0.5) / A_DAY for n in index.tolist()]
        table = pa.table(
            {
                "prediction_id": [names[n] for n in index],
                "version": version,
                "arm": ["split"] * len(index),
                "shadow": np.arange(len(index)) >= A_DAY,
                "unit": [names[n] for n in index],
                "predicted_at": pa.array(at, pa.timestamp("us", "UTC")),
                "latency_ms": np.full(len(index), 1.0),
                "outputs": pa.array((1 / (1 + np.exp(-logit))).reshape(-1, 1).tolist()),
                "label": self.flights.late[rows][index],
            }
        )
        self.days.append((self.now, table))
        self.now += DAY

    def read(self, start: datetime, end: datetime) -> pa.Table:
        """Rows of whole days: a rollout asks for no less."""
        return pa.concat_tables([table for day, table in self.days if start <= day < end])


# 100 rollouts of an equal challenger: promoted at most .05 + 4 s.e. = .137 of them; seeds 0 to 99.
@pytest.mark.proof
def test_a_hundred_equal_challengers_are_hardly_ever_promoted(tmp_path: Path) -> None:
    _, season = load_flights()
    mean = np.bincount(season.x[:, 0].astype(int), season.late) / np.maximum(
        np.bincount(season.x[:, 0].astype(int)), 1
    )
    rate = np.clip(mean, 0.02, 0.98)[season.x[:, 0].astype(int)]
    odds = np.log(rate / (1 - rate))
    ends: dict[str, int] = {}
    for seed in range(RUNS):
        registry = TrafficRegistry()
        registry.now = replace_salt(registry.now, f"{seed}")
        recorded = Recorded(season, odds, registry, seed)
        store = open_store(f"file://{tmp_path}/{seed}")

        def rollouts(store: Any = store, registry: Any = registry, recorded: Any = recorded) -> Rollouts:
            return Rollouts(
                MODEL,
                store=store,
                registry=registry,
                read=recorded.read,
                clock=lambda: recorded.now,
                actor="t",
            )

        rollouts().start(2, POLICY, reason="equal")
        ticked = rollouts().tick()
        while ticked.stage in {"shadow", "canary"}:
            recorded.serve_a_day()
            ticked = rollouts().tick()
        end = f"{ticked.stage} by {ticked.rule}"
        ends[end] = ends.get(end, 0) + 1
    _logger.info("%d rollouts of an equal challenger ended: %s", RUNS, ends)
    promoted = sum(count for end, count in ends.items() if end.startswith("promoted"))
    assert promoted / RUNS <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / RUNS), ends
    assert ends.get("inconclusive by timed_out", 0) > RUNS / 2, ends


def replace_salt(traffic: Any, salt: str) -> Any:
    return traffic.model_copy(update={"salt": salt})


class OnRecord:
    """The registry of a store, as the platform reads it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    @property
    def now(self) -> Any:
        """The traffic in force."""
        return self._registry.traffic(MODEL)


def with_models(folder: Path) -> RolloutPlatform:
    """A platform whose registry is in its store, with a champion and a challenger."""
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="ada")
    registry.create_model(MODEL)
    (folder / "artifact").mkdir()
    for version in (1, 2):
        (folder / "artifact" / "model.json").write_text(f"{version}")
        registry.create_version(MODEL, path=folder / "artifact")
    registry.promote(MODEL, 1, reason="first")
    made: Any = OnRecord(registry)
    return RolloutPlatform(store, registry=made)


def season(platform: RolloutPlatform, before_a_tick: Any) -> list[tuple[Any, ...]]:
    """A rollout by daily ticks; returns its decisions."""
    policy = RolloutPolicy(shadow_min_labels=200)
    rollouts_of(platform.store, MODEL, platform.now).start(2, policy, reason="retrained")
    for _ in range(40):
        platform.serve_a_day()
        before_a_tick(platform)
        rollouts_of(platform.store, MODEL, platform.now).tick()
        current = rollouts_of(platform.store, MODEL, platform.now).history().current
        if current is not None and current.settled:
            break
    entries = rollouts_of(platform.store, MODEL, platform.now).entries()
    return [
        (entry.body["stage"], entry.body["decision"], entry.body["evidence"], entry.at)
        for entry in entries
        if entry.body["event"] == "decided"
    ]


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_ticker_killed_fifty_times_at_random_changes_no_decision(tmp_path: Path) -> None:
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    calm = season(with_models(tmp_path / "calm"), lambda _: None)
    assert calm[-1][0] == "promoted"
    rng, processes = np.random.default_rng(8), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.functions.rollout.victim"])
    killed = 0

    def kill(platform: RolloutPlatform) -> None:
        nonlocal killed
        for _ in range(math.ceil(KILLS / len(calm)) + 2):
            fuse, after = int(rng.integers(1, 14)), bool(rng.integers(2))
            victim = processes.Process(
                target=tick, args=(platform.store.url, MODEL, platform.now, fuse, after)
            )
            victim.start()
            victim.join(60)
            killed += victim.exitcode == -signal.SIGKILL
            assert victim.exitcode in {0, -signal.SIGKILL}

    platform = with_models(tmp_path / "killed")
    assert season(platform, kill) == calm
    assert killed >= KILLS
    assert platform.registry.now.versions == (2,)
