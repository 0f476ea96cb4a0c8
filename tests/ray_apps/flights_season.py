"""A season of flights on a platform: a champion, rollouts of other versions against it, and the current day."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np

from tests.ray_apps.flights_driver import CARRIERS, MODEL, Delay, Driver, load_flights

NOISE = 0.1  # of the champion's log odds
FLIGHTS_A_DAY = 150  # requests a day
STEP = timedelta(seconds=10)
REQUESTS_A_STEP = 250  # 1,500 requests a minute
POLICY = {
    "planned_labels": 2_000,
    "shadow_min_labels": 200,
    "canary_share": 0.2,
    "shadow_timeout": "P21D",
    "canary_timeout": "P28D",
}
QUICK = POLICY | {"shadow_min_labels": 60, "burn_in": 30, "canary_min_requests": 10}
ENDS = {"promoted", "rolled_back", "inconclusive"}


class FlightSeason:
    """Runs days of flights on a platform, with ticks of a rollout. flights: May to December; past: before May."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.past, self.flights = load_flights()
        self.day = 0
        self.champion = self.make(by_hour=False, noise=NOISE)
        driver.registry.promote(MODEL, driver.version(self.champion))
        driver.follow()

    def make(self, **chosen: Any) -> Delay:
        """Make a model of the flights before the season."""
        return Delay(self.past, **chosen)

    def start(self, model: Delay, policy: dict[str, Any]) -> int:
        """Register a version and start its rollout; returns its number."""
        version = self.driver.version(model)
        self.driver.function("start_rollout", model=MODEL, version=version, policy=policy, reason="a try")
        self.driver.follow()
        return version

    def run_days(
        self, days: int, *, most: int = FLIGHTS_A_DAY, until: frozenset[str] = frozenset(ENDS)
    ) -> list[dict[str, Any]]:
        """Run days with a tick each, until a tick leads to a stage in `until`; returns the ticks."""
        ticks: list[dict[str, Any]] = []
        for _ in range(days):
            ticks.append(self.driver.run_day_and_tick(self.flights, self.day, most))
            self.day += 1
            self.driver.follow()
            if ticks[-1]["stage"] in until:
                break
        return ticks

    def run_minutes(self, *, unknown: float = 0.0) -> tuple[timedelta, dict[str, Any]]:
        """Run steps of ten seconds with a tick each until the rollout ends; returns how long it took and the last tick.

        unknown: share of flights of a carrier that the champion has not seen.
        """
        begun, rng = self.driver.now, np.random.default_rng(5)
        while True:
            x = self.flights.x[
                rng.choice(np.flatnonzero(self.flights.day == self.day), REQUESTS_A_STEP)
            ].copy()
            x[rng.random(REQUESTS_A_STEP) < unknown, 1] = CARRIERS - 1
            self.driver.ask(x)
            self.driver.drain()
            self.driver.move(STEP)
            tick = self.driver.function("tick_rollout", model=MODEL)
            if tick["stage"] in ENDS or self.driver.now - begun > timedelta(minutes=3):
                return self.driver.now - begun, tick

    def settle(self) -> tuple[int, ...]:
        """Run the tick after a rollout's end; returns the versions in the traffic."""
        assert self.driver.function("tick_rollout", model=MODEL)["rule"] == "settled"
        traffic = self.driver.registry.traffic(MODEL)
        self.driver.follow()
        return traffic.versions
