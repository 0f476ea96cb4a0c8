"""Drift of images, which no pixel shows by itself: inverted and moved digits are found, and the same digits stay quiet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits

from toque.functions.monitoring import DriftMonitor
from toque.functions.monitoring.jobs import watch_drift
from toque.functions.monitoring.logged_features import FeatureColumns, summaries, summary_names
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.runtime import Context
from toque.functions.runtime.context import use_context
from toque.registry import Lineage, Registry, Signature, Table, TensorSpec, open_store

START, DAY = datetime(2024, 3, 1, tzinfo=UTC), timedelta(days=1)
A_DAY, DAYS = 120, 6
Images = npt.NDArray[np.float64]


def drawn(rng: np.random.Generator, count: int) -> Images:
    """Digits of scikit-learn with the noise of paper, (count, 8, 8)."""
    images = load_digits().images
    found: Images = images[rng.integers(0, len(images), count)] + rng.normal(size=(count, 8, 8))
    return found


@pytest.fixture
def used(tmp_path):
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    rng = np.random.default_rng(0)
    times = [START - DAY * (1 + place % 20) for place in range(2_000)]
    rows = pa.table(
        {
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "image": drawn(rng, 2_000).tolist(),
            "age": rng.normal(size=2_000),
        }
    )
    snapshot = Table(store, "training/digit").overwrite(rows)
    registry = Registry(store, actor="ada")
    registry.create_model("digit")
    (tmp_path / "model.txt").write_text("m")
    inputs = [
        TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["age"]),
        TensorSpec(name="image", datatype="FP32", shape=[-1, 8, 8]),
    ]
    outputs = [TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])]
    registry.create_version(
        "digit",
        tmp_path / "model.txt",
        signature=Signature(inputs=inputs, outputs=outputs),
        lineage=Lineage(datasets=[snapshot]),
    )
    registry.set_alias("digit", "champion", 1)
    with use_context(
        Context(store, url, clock=lambda: START + DAYS * DAY + timedelta(hours=2), actor="ada")
    ) as made:
        yield made


def log(store: Any, change: Callable[[Images], Images]) -> None:
    """Log six days of requests as a replica does: the numbers of all inputs side by side."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for day in range(DAYS):
        for place, image in enumerate(change(drawn(rng, A_DAY))):
            at = START + DAY * (day + (place + 0.5) / A_DAY)
            rows.append(
                {
                    "prediction_id": f"{day}-{place}", "model": "digit", "version": 1, "arm": "champion", "shadow": False,
                    "predicted_at": at, "numeric": [float(rng.normal()), *image.ravel().tolist()], "categorical": [],
                    "outputs": [0.5], "day": f"{at:%Y-%m-%d}",
                }
            )  # fmt: skip
    Table(store, predictions_table("digit")).append(
        pa.Table.from_pylist(rows, PREDICTIONS), partition_by=["day"]
    )


def drifted(used: Context, change: Callable[[Images], Images]) -> set[str]:
    log(used.store, change)
    result = watch_drift("digit", DriftMonitor(window=3, k=2, n=3))
    assert result.cohorts > 0
    return {name for alarm in result.alarms for name in alarm.columns}


def test_the_same_images_stay_quiet(used: Context) -> None:
    assert drifted(used, lambda images: images) == set()


def test_inverted_images_are_found(used: Context) -> None:
    found = drifted(used, lambda images: 16.0 - images)
    assert "image mean" in found
    assert "age" not in found


def test_moved_images_are_found_by_their_projections_alone(used: Context) -> None:
    found = drifted(used, lambda images: np.roll(images, 2, axis=2))
    assert found
    assert found <= {name for name in summary_names("image") if "projection" in name}


def test_the_directions_are_those_of_the_model_and_the_tensor() -> None:
    values = np.random.default_rng(0).normal(size=(10, 64))
    first, again, other = (summaries(model, "image", values) for model in ("digit", "digit", "letter"))
    name = summary_names("image")[-1]
    assert first[name].tolist() == again[name].tolist() != other[name].tolist()
    assert first["image norm"] == pytest.approx(np.linalg.norm(values, axis=1))


def test_a_tensor_takes_its_place_among_the_logged_numbers(used: Context) -> None:
    columns = FeatureColumns.of(used.registry().get_version("digit", 1))
    assert (columns.numeric, columns.width, dict(columns.tensors)) == (("age",), 65, {"image": (1, 64)})
    assert columns.select(["image"]).summaries == summary_names("image")
