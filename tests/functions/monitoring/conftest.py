"""A folder store with the log of a model that reads two numbers and a category, and its training set in the registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.runtime import Context
from toque.registry import (
    Lineage,
    ObjectStore,
    Registry,
    Signature,
    Table,
    TableSnapshot,
    TensorSpec,
    open_store,
)

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MODEL = "late"


@dataclass
class ServedModel:
    """Serves `version` a day at a time; the truth follows its probability, plus `bias` on the log odds; wind may shift."""

    store: ObjectStore
    root: Path
    version: int = 1
    bias: float = 0.0
    shift: float = 0.0
    labelled: float = 1.0
    now: datetime = START
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def clock(self) -> datetime:
        return self.now

    def context(self) -> Context:
        return Context(self.store, self.store.url, clock=self.clock, actor="inspector")

    def registry(self) -> Registry:
        return Registry(self.store, actor="trainer", clock=self.clock)

    def register(
        self,
        *,
        shift: float = 0.0,
        metrics: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
    ) -> int:
        """A version with a training set of 60 days before START, made champion."""
        days = [START - (60 - i) * DAY for i in range(60)]
        rows = pa.concat_tables(
            [
                self.features(100, shift).append_column(
                    "event_timestamp", pa.array([at] * 100, pa.timestamp("us", "UTC"))
                )
                for at in days
            ]
        )
        snapshot: TableSnapshot = Table(self.store, "training/late").overwrite(rows)
        reg = self.registry()
        reg.create_model(MODEL, exist_ok=True)
        path = self.root / "model.txt"
        path.write_text(f"{snapshot.version}")
        signature = Signature(
            inputs=[
                TensorSpec(name="numeric", datatype="FP32", shape=[-1, 2], columns=["wind", "hour"]),
                TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["carrier"]),
            ],
            outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
        )
        made = reg.create_version(
            MODEL,
            path,
            signature=signature,
            metrics=metrics or {},
            tags=tags or {},
            lineage=Lineage(datasets=[snapshot]),
        )
        reg.set_alias(MODEL, "champion", made.version)
        self.version = made.version
        return made.version

    def features(self, rows: int, shift: float) -> pa.Table:
        return pa.table(
            {
                "wind": self.rng.normal(shift, 1.0, rows),
                "hour": self.rng.integers(0, 24, rows).astype(float),
                "carrier": self.rng.choice(["AA", "UA", "DL"], rows),
            }
        )

    def serve(self, days: int = 1, requests: int = 150) -> None:
        rows: list[dict[str, Any]] = []
        labels: list[dict[str, Any]] = []
        for _ in range(days):
            self._serve_a_day(requests, rows, labels)
        for table, values, schema in (
            (predictions_table(MODEL), rows, PREDICTIONS),
            (LABELS_TABLE, labels, LABELS),
        ):
            if values:
                Table(self.store, table).append(
                    pa.Table.from_pylist(values, schema=schema), partition_by=["day"]
                )

    def _serve_a_day(self, requests: int, rows: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
        asked = self.features(requests, self.shift)
        odds = asked["wind"].to_numpy()
        truth = self.rng.random(requests) < 1 / (1 + np.exp(-odds - self.bias))
        for i in range(requests):
            at = self.now + DAY * (i + 0.5) / requests
            name = f"{self.now:%Y%j}-{i}"
            rows.append(self._row(asked, i, name, at, float(1 / (1 + np.exp(-odds[i])))))
            if self.rng.random() < self.labelled:
                seen = at + timedelta(hours=5)
                labels.append(
                    {
                        "prediction_id": name,
                        "label": float(truth[i]),
                        "observed_at": seen,
                        "received_at": seen,
                        "day": f"{seen:%Y-%m-%d}",
                    }
                )
        self.now += DAY

    def _row(self, asked: pa.Table, i: int, name: str, at: datetime, p: float) -> dict[str, Any]:
        return {
            "prediction_id": name,
            "model": MODEL,
            "version": self.version,
            "arm": "champion",
            "shadow": False,
            "unit": name,
            "predicted_at": at,
            "latency_ms": 4.0,
            "numeric": [asked["wind"][i].as_py(), asked["hour"][i].as_py()],
            "categorical": [asked["carrier"][i].as_py()],
            "outputs": [p],
            "day": f"{at:%Y-%m-%d}",
        }


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    return ServedModel(open_store(f"file://{tmp_path}/store"), tmp_path)
