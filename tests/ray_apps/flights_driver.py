"""Starts a platform that predicts delays of the flights of 2013 on a replayed clock, and drives it by HTTP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import numpy as np
import polars as pl
import torch

from examples.flights.data import flights
from tests.ports import free_port
from tests.waiting import until
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.runtime.changes import Announcer
from toque.functions.runtime.clock import ReplayClock
from toque.ray_apps.local import down
from toque.ray_apps.local.audit_key import open_platform_store
from toque.ray_apps.local.state_file import find_platform
from toque.registry import Registry, Signature, Table, TensorSpec

MODEL = "late"
MAY = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOURS, CARRIERS = 24, 24
PROJECT = f"""
from toque.functions.project import ModelDefinition

FEATURES = []
MODELS = [ModelDefinition(name="{MODEL}", service="none", entities="none", label="late", numeric=("hour",),
                          monitors=(), retraining=None, inspect="0 0 1 1 *")]
"""
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3], columns=["hour", "carrier", "flight"])],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    example={"x": [[8.0, 1.0, 12.0]]},
)


@dataclass(frozen=True)
class Flights:
    """Flights in order of departure. x: (rows, 3) hour, carrier and number; late: (rows,); day: (rows,) since 1 May."""

    x: np.ndarray
    late: np.ndarray
    day: np.ndarray

    def on(self, day: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample a day's flights evenly, at most `most`."""
        rows = np.flatnonzero(self.day == day)
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
        return self.x[rows], self.late[rows]


def load_flights() -> tuple[Flights, Flights]:
    """Load flights of January to April, for training, and of May to December, for requests."""
    new_york = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    table = (
        flights()
        .filter(pl.col("arr_delay").is_not_null())
        .select(
            hour=new_york.dt.hour().cast(pl.Float32),
            carrier=pl.col("carrier").rank("dense").cast(pl.Float32) - 1,
            flight=pl.col("flight").cast(pl.Float32),
            late=(pl.col("arr_delay") > 15).cast(pl.Float64),
            day=(new_york.dt.date() - MAY.date()).dt.total_days(),
        )
    )
    made = [
        Flights(
            part.select("hour", "carrier", "flight").to_numpy(),
            part["late"].to_numpy(),
            part["day"].to_numpy(),
        )
        for part in (table.filter(pl.col("day") < 0), table.filter(pl.col("day") >= 0))
    ]
    return made[0], made[1]


def deviations(past: Flights, column: int, size: int) -> np.ndarray:
    """Compute for each value of a column how far its log odds of being late lie from those of all flights, shrunken."""
    code = past.x[:, column].astype(int)
    rows, late = np.bincount(code, minlength=size), np.bincount(code, past.late, minlength=size)
    mean = past.late.mean()
    rate = (late + 100 * mean) / (rows + 100)
    return np.log(rate / (1 - rate)) - np.log(mean / (1 - mean))


class Delay(torch.nn.Module):
    """Model of log odds by hour and by carrier.

    noise: factor of a wave over flight numbers, which is unrelated to delays; known: number of carriers in the table,
    a request for another one fails; labour: number of products of large matrices computed with each prediction.
    """

    def __init__(
        self, past: Flights, *, by_hour: bool, noise: float = 0.0, known: int = CARRIERS, labour: int = 0
    ) -> None:
        super().__init__()
        mean = past.late.mean()
        hours = deviations(past, 0, HOURS) if by_hour else np.zeros(HOURS)
        carriers = deviations(past, 1, CARRIERS)[:known]
        self.register_buffer("hours", torch.tensor(hours + np.log(mean / (1 - mean)), dtype=torch.float32))
        self.register_buffer("carriers", torch.tensor(carriers, dtype=torch.float32))
        self.register_buffer("weights", torch.eye(400 if labour else 1))
        self.noise, self.labour = noise, labour

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.hours[x[:, 0].long()] + self.carriers[x[:, 1].long()]
        logit = logit + self.noise * torch.sin(x[:, 2] * 12.9898)
        work = self.weights + 0 * logit[0]
        for _ in range(self.labour):
            work = work @ self.weights
        return torch.sigmoid(logit + 0 * work[0, 0]).unsqueeze(1)


def log_loss(model: Delay, rows: Flights) -> float:
    """Mean log loss on all rows, in nats."""
    with torch.no_grad():
        p = model(torch.from_numpy(rows.x)).numpy()[:, 0].clip(0.01, 0.99)
    return float(-np.mean(np.where(rows.late > 0, np.log(p), np.log1p(-p))))


class Endpoint(Protocol):
    """Address and token of a platform under test."""

    @property
    def url(self) -> str:
        """URL of the platform's HTTP API."""
        ...

    def token(self) -> str:
        """Bearer token of a caller who may infer."""
        ...


@dataclass
class Driver:
    """Drives a platform: sends requests and labels, moves the clock, ticks; all by HTTP but the clock.

    asked, labelled: requests and labels so far; shadow_requests: requests that shadows are to score;
    answers: responses by version, failures under their status; reports: whether labels are sent.
    """

    running: Endpoint
    registry: Registry
    clock: ReplayClock
    folder: Path
    now: datetime = MAY
    asked: int = 0
    shadow_requests: int = 0
    labelled: int = 0
    reports: bool = True
    landed: list[tuple[str, float]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def version(self, model: Delay) -> int:
        """Register a version; returns its number."""
        path = self.folder / f"artifact-{len(list(self.folder.glob('artifact-*')))}"
        path.mkdir()
        save_program(export_program(model, {"x": torch.ones(2, 3)}), path / "model.pt2")
        return self.registry.create_version(MODEL, path=path, signature=SIGNATURE).version

    def call(self, path: str, body: Any = None) -> Any:
        """Send a GET, or a POST with a body, as the administrator."""
        headers = {"Authorization": f"Bearer {self.running.token()}"}
        method = "GET" if body is None else "POST"
        answer = httpx.request(method, self.running.url + path, json=body, headers=headers, timeout=120)
        assert answer.status_code == HTTPStatus.OK, answer.text
        return answer.json()

    def function(self, name: str, /, **arguments: Any) -> Any:
        """Call a function of the platform by HTTP."""
        return self.call(f"/functions/{name}", arguments)

    def move(self, by: timedelta) -> None:
        """Move the platform's clock forward or back."""
        self.now += by
        self.clock.set(self.now)

    def follow(self) -> None:
        """Wait until the replica serves the traffic that the registry has."""
        wanted = self.registry.traffic(MODEL)

        def followed() -> bool:
            status = self.call(f"/v2/models/{MODEL}/status")
            return status["policy_entry"] == wanted.entry and set(wanted.versions) <= set(status["loaded"])

        until(followed)

    def ask(self, x: np.ndarray) -> list[str | None]:
        """Send a request for each row of (rows, 3), sixteen at a time; returns their ids, None for failed requests."""
        ids = [f"{self.asked + n}" for n in range(len(x))]
        self.asked += len(x)
        shadows = {str(version) for version in self.registry.traffic(MODEL).shadows}
        versions = asyncio.run(self._ask(ids, x))
        self.answers.update(versions)
        self.shadow_requests += sum(len(shadows - {version}) for version in versions if version != "500")
        return [name if version != "500" else None for name, version in zip(ids, versions, strict=True)]

    async def _ask(self, ids: Sequence[str], x: np.ndarray) -> list[str]:
        headers = {"Authorization": f"Bearer {self.running.token()}"}
        connector = aiohttp.TCPConnector(limit=16)
        async with aiohttp.ClientSession(self.running.url, headers=headers, connector=connector) as http:

            async def one(name: str, row: Sequence[float]) -> str:
                tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": row}
                body = {"id": name, "inputs": [tensor], "parameters": {"unit": name}}
                async with http.post(f"/v2/models/{MODEL}/infer", json=body) as response:
                    content = await response.json(content_type=None)
                    assert response.status in {200, 500}, content
                    return str(content["model_version"]) if response.status == HTTPStatus.OK else "500"

            return await asyncio.gather(*map(one, ids, x.tolist()))

    def drain(self) -> None:
        """Wait until every prediction, also of shadows, and every label is in the tables."""
        deadline = time.monotonic() + 120
        while True:
            status = self.call(f"/v2/models/{MODEL}/status")
            self.function("drain_predictions")  # the ticker drains too, on its own schedule
            log, shadows = status["log"], status["shadows"]
            missing = {
                "shadows": self.shadow_requests - shadows["scored"] - shadows["failed"] - shadows["dropped"],
                "predictions": log["written"] - self._rows(predictions_table(MODEL)),
                "failures": self.answers["500"] + shadows["failed"] - log["failures"],
                "labels": self.labelled - self._rows(LABELS_TABLE),
            }
            if not any(count > 0 for count in missing.values()):
                return
            assert time.monotonic() < deadline, f"not in the tables: {missing}, {status}"
            time.sleep(0.05)

    def _rows(self, name: str) -> int:
        table = Table(self.registry.store, name)
        return table.read(columns=["prediction_id"]).num_rows if table.exists() else 0

    def label(self, known: Sequence[tuple[str, float]]) -> None:
        """Send labels of predictions by their ids."""
        if known:
            self.call("/feedback", [{"prediction_id": name, "label": label} for name, label in known])
        self.labelled += len(known)

    def run_day(self, rows: Flights, day: int, most: int) -> None:
        """Run a day: requests for its flights, and labels of the day before, whose flights have landed."""
        x, late = rows.on(day, most)
        ids = self.ask(x)
        self.label(self.landed if self.reports else [])
        self.landed = [
            (name, label) for name, label in zip(ids, late.tolist(), strict=True) if name is not None
        ]
        self.drain()
        self.move(DAY)

    def run_day_and_tick(self, rows: Flights, day: int, most: int) -> dict[str, Any]:
        """Run a day, and tick the rollout at midnight."""
        self.run_day(rows, day, most)
        ticked: dict[str, Any] = self.function("tick_rollout", model=MODEL)
        return ticked


@contextmanager
def platform(folder: Path) -> Iterator[Driver]:
    """Start a platform with gateway, ticker and a replica of the model; yields its driver, and ends it."""
    (folder / "flights_project.py").write_text(PROJECT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TOQUE_", "RAY_"))}
    environment["TOQUE_CLOCK"] = "replay"
    ports = ["--project", "flights_project", "--port", str(free_port())]
    command = [sys.executable, "-m", "toque.ray_apps.cli", "--home", str(folder / "home"), "up", *ports]
    started = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300, check=False
    )
    try:
        running = find_platform(folder / "home")
        assert started.returncode == 0, started.stdout + started.stderr
        assert running is not None
        store = open_platform_store(running.settings, announce=Announcer(running.redis_url))
        registry = Registry(store, actor="ada")
        registry.create_model(MODEL)
        clock = ReplayClock(running.redis_url)
        clock.set(MAY)
        yield Driver(running, registry, clock, folder)
    finally:
        down(folder / "home")
