"""A platform that has answered for flights so far: a champion, rollouts of others against it, and the day that has come."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np

from tests.ray_apps.flights_rollouts import CARRIERS, MODEL, Delay, Driver, load_flights

NOISE = 0.1  # of the champion
A_DAY = 150  # flights asked about
STEP = timedelta(seconds=10)
A_STEP = 250  # 1,500 requests a minute
POLICY = {
    "planned_labels": 2_000,
    "shadow_min_labels": 200,
    "canary_share": 0.2,
    "shadow_timeout": "P21D",
    "canary_timeout": "P28D",
}
QUICK = POLICY | {"shadow_min_labels": 60, "burn_in": 30, "canary_min_requests": 10}
ENDS = {"promoted", "rolled_back", "inconclusive"}


class Kitchen:
    """The platform, the flights, and the day that has come."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.past, self.season = load_flights()
        self.day = 0
        self.champion = self.make(by_hour=False, noise=NOISE)
        driver.registry.promote(MODEL, driver.version(self.champion))
        driver.follow()

    def make(self, **chosen: Any) -> Delay:
        return Delay(self.past, **chosen)

    def start(self, model: Delay, policy: dict[str, Any]) -> int:
        version = self.driver.version(model)
        self.driver.function("start_rollout", model=MODEL, version=version, policy=policy, reason="a try")
        self.driver.follow()
        return version

    def live(
        self, days: int, *, most: int = A_DAY, until: frozenset[str] = frozenset(ENDS)
    ) -> list[dict[str, Any]]:
        """Days with a tick each, until one leads to a stage of `until`."""
        ticks: list[dict[str, Any]] = []
        for _ in range(days):
            ticks.append(self.driver.live(self.season, self.day, most))
            self.day += 1
            self.driver.follow()
            if ticks[-1]["stage"] in until:
                break
        return ticks

    def minutes(self, *, unknown: float = 0.0) -> tuple[timedelta, dict[str, Any]]:
        """Steps of ten seconds with a tick each until the rollout ends. unknown: share of flights of a carrier that is new."""
        begun, rng = self.driver.now, np.random.default_rng(5)
        while True:
            x = self.season.x[rng.choice(np.flatnonzero(self.season.day == self.day), A_STEP)].copy()
            x[rng.random(A_STEP) < unknown, 1] = CARRIERS - 1
            self.driver.ask(x)
            self.driver.drain()
            self.driver.move(STEP)
            tick = self.driver.function("tick_rollout", model=MODEL)
            if tick["stage"] in ENDS or self.driver.now - begun > timedelta(minutes=3):
                return self.driver.now - begun, tick

    def settle(self) -> tuple[int, ...]:
        """The tick after the end; returns the versions in the traffic."""
        assert self.driver.function("tick_rollout", model=MODEL)["rule"] == "settled"
        traffic = self.driver.registry.traffic(MODEL)
        self.driver.follow()
        return traffic.versions
