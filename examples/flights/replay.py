"""Replay of a season against the platform: features pushed when known, flights predicted, labels reported.

The replayed clock moves in steps of half an hour, in which features are published. Within a step requests run
concurrently; before each step all rows that became known are pushed, so that Redis holds what was known at that moment
and never more. The clock stands still while the platform inspects and retrains.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import aiohttp
import numpy as np
import polars as pl

from examples.flights.features import STORED, booking
from examples.flights.model import ENTITIES, delay_model
from examples.flights.sources import EVERY, KEYS
from toque.featurestore import FeatureStore
from toque.functions.runtime.clock import ReplayClock
from toque.registry import ObjectStore, Table

IN_FLIGHT = 16
PATIENCE_S, RETRY_S = 120.0, 0.2  # while a replica or Redis is being replaced
FAULT = HTTPStatus.INTERNAL_SERVER_ERROR
AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
Daily = Callable[[datetime], Awaitable[None]]


@dataclass(slots=True)
class Season:
    """Data of a replay: `flights` in order of their prediction's time, and each view's rows in order of time."""

    flights: pl.DataFrame
    rows: dict[str, pl.DataFrame]
    start: datetime
    end: datetime

    @classmethod
    def of(
        cls, store: ObjectStore, fs: FeatureStore, start: datetime, end: datetime, requests: int
    ) -> "Season":
        """Read an even sample of `requests` flights predicted in [start, end), and the feature rows of that time."""
        entities = pl.DataFrame(Table(store, ENTITIES).read()).filter(
            (pl.col("event_timestamp") >= start) & (pl.col("event_timestamp") < end)
        )
        chosen = np.linspace(0, entities.height - 1, min(requests, entities.height)).astype(np.int64)
        flights = entities.sort("event_timestamp", "flight_id")[chosen]
        steps = flights["event_timestamp"].dt.truncate(f"{int(EVERY.total_seconds())}s")
        rows = {}
        for view in STORED:
            found = pl.DataFrame(fs.offline_table(view).read()).drop(
                "created_timestamp", "event_day", strict=False
            )
            rows[view.name] = found.filter(pl.col("event_timestamp") < end).sort("event_timestamp")
        return cls(flights.with_columns(step=steps), rows, start, end)

    def steps(self) -> Iterator[tuple[datetime, pl.DataFrame]]:
        """Yield the half hours in which flights are predicted, each with its flights."""
        for (moment,), flights in self.flights.group_by("step", maintain_order=True):
            yield moment, flights


@dataclass(slots=True)
class Tally:
    """Counts of a replay's answers and labels.

    answered: prediction id to version; retried: requests that were sent again; failed: count by status or error; labels:
    number that were reported; due: labels that are not known yet, as (time, prediction id, label).
    """

    answered: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    labels: int = 0
    due: list[tuple[datetime, str, float]] = field(default_factory=list)


@dataclass(slots=True)
class Replay:
    """Drives one season against a running platform.

    url, token: of the gateway; name: prefix of the prediction ids, so that those of two replays differ.
    """

    season: Season
    fs: FeatureStore
    clock: ReplayClock
    url: str
    token: str
    name: str
    tally: Tally = field(default_factory=Tally)

    async def run(self, daily: Daily, progress: Callable[[datetime], None]) -> Tally:
        """Replay the season; `daily` is awaited at each midnight, and once at the end, while the clock stands still."""
        headers = {"Authorization": f"Bearer {self.token}"}
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
        async with aiohttp.ClientSession(self.url, headers=headers, connector=connector) as http:
            before, day = datetime(1970, 1, 1, tzinfo=UTC), self.season.start
            for moment, flights in self.season.steps():
                while moment >= day + timedelta(days=1):
                    day += timedelta(days=1)
                    await self._midnight(http, day, daily)
                self.clock.set(moment)
                self._publish(before, moment)
                await self._predict_all(http, flights)
                before = moment
                progress(moment)
            await self._midnight(http, self.season.end + timedelta(days=2), daily)
        return self.tally

    def _publish(self, after: datetime, until: datetime) -> None:
        """Push the feature rows that became known in (after, until]."""
        for view, rows in self.season.rows.items():
            first, last = np.searchsorted(
                rows["event_timestamp"].to_numpy(), _numpy(after, until), side="right"
            )
            if last > first:
                self.fs.push(view, rows[first:last].to_arrow(), to="online")

    async def _predict_all(self, http: aiohttp.ClientSession, flights: pl.DataFrame) -> None:
        await asyncio.gather(*(self._predict(http, row) for row in flights.to_dicts()))

    async def _predict(self, http: aiohttp.ClientSession, row: dict[str, Any]) -> None:
        name = f"{self.name}-{row['flight_id']}"
        body = {
            "id": name,
            "inputs": [],
            "parameters": {
                "unit": str(row["flight_id"]),
                "entities": [{key: row[key] for key in KEYS}],
                "request": [{field.name: row[field.name] for field in booking.schema}],
                "at": row["event_timestamp"].isoformat(),
            },
        }
        deadline = time.monotonic() + PATIENCE_S
        while not await self._attempt(http, name, body, last=time.monotonic() > deadline):  # noqa: ASYNC110
            await asyncio.sleep(RETRY_S)
        if name in self.tally.answered and row["late"] is not None:
            self.tally.due.append((row["label_known_at"], name, row["late"]))

    async def _attempt(
        self, http: aiohttp.ClientSession, name: str, body: dict[str, Any], *, last: bool
    ) -> bool:
        """Send a request once; returns False to send it again, as while a replica or Redis is being replaced."""
        try:
            async with http.post(f"/v2/models/{delay_model.name}/infer", json=body) as response:
                if response.status == HTTPStatus.OK:
                    self.tally.answered[name] = int((await response.json())["model_version"])
                    return True
                reason, retry = (
                    f"HTTP {response.status}",
                    response.status in AGAIN or response.status >= FAULT,
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            reason, retry = type(error).__name__, True
        if retry and not last:
            self.tally.retried += 1
            return False
        self.tally.failed[reason] = self.tally.failed.get(reason, 0) + 1
        return True

    async def _midnight(self, http: aiohttp.ClientSession, now: datetime, daily: Daily) -> None:
        """Move to the day's end, report the flights that have landed, and let the platform inspect."""
        self.clock.set(now)
        await asyncio.sleep(
            2 * self.clock.hold_s
        )  # other processes read the clock anew: no label is from the future
        landed = [due for due in self.tally.due if due[0] <= now]
        self.tally.due = [due for due in self.tally.due if due[0] > now]
        if landed:
            body = [
                {"prediction_id": name, "label": label, "observed_at": at.isoformat()}
                for at, name, label in landed
            ]
            async with http.post("/feedback", json=body) as response:
                response.raise_for_status()
            self.tally.labels += len(landed)
        await daily(now)


def _numpy(*moments: datetime) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    """Convert aware times to numpy's, which have no zone and are UTC here."""
    return np.array([moment.replace(tzinfo=None) for moment in moments], dtype="datetime64[us]")
