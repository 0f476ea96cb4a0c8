"""What the predictor logs of an answer is what the model saw and gave, with the place in its batch and the chance of its arm."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ray_apps.predictor.conftest import MemoryLog, ServedModel, tensors
from toque.functions.evaluation.log_replay import compare
from toque.functions.prediction_log import predictions
from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.reading.exact import ExactRow, exact_rows, newest_rows
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.functions.prediction_log.writing.drain import add_records
from toque.ray_apps.predictor.inference import recording
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.json import InferRequest
from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import Registry, Signature, TensorSpec, TrafficRule, open_store

LATER = datetime(2100, 1, 1, tzinfo=UTC)
Specs = Sequence[tuple[str, str, list[int]]]


class Rounded:
    """Answers with sums whose last bits depend on place and number of rows, and a class as text."""

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        x = next(iter(inputs.values()))
        rows = len(x)
        words = np.empty(rows, dtype=object)
        words[:] = [f"class {row}".encode() for row in range(rows)]
        total = np.zeros(rows) if x.dtype.kind == "O" else x.reshape(rows, -1).astype(np.float64).sum(axis=1)
        return {"sum": total + np.arange(rows) * 2.0**-40 + rows * 2.0**-30, "word": words}


def made(
    tmp_path: Path, inputs: Specs, *, tags: Mapping[str, str] | None = None
) -> tuple[Predictor, MemoryLog]:
    specs = [TensorSpec.model_validate({"name": n, "datatype": d, "shape": s}) for n, d, s in inputs]
    signature = Signature(
        inputs=specs,
        outputs=[
            TensorSpec(name="sum", datatype="FP64", shape=[-1]),
            TensorSpec(name="word", datatype="BYTES", shape=[-1]),
        ],
    )
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    registry.create_model("late")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.json").write_text("{}")
    registry.create_version("late", path=tmp_path / "artifact", signature=signature, tags=dict(tags or {}))
    registry.promote("late", 1)
    engine = Engine("late", registry, lambda *_: Rounded(), scratch=tmp_path / "loading")
    engine.follow_once()
    engine.load_wanted()
    log = MemoryLog()
    return Predictor(engine, Recorder("late", log)), log


def rows_of(predictor: Predictor, log: MemoryLog, tmp_path: Path) -> list[ExactRow]:
    """The rows as a reader of the tables has them."""
    store = open_store(f"file://{tmp_path}/log")
    add_records(store, "predictions", {"w": [Frame(i + 1, each, 0) for i, each in enumerate(log.payloads)]})
    champion = predictor.engine.routes.champion
    assert champion is not None
    rows = newest_rows(store, "late", LATER - timedelta(days=40_000), LATER, version=1, limit=1_000)
    return list(exact_rows(store, "late", champion.signature, rows))


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1 + 2**-50, np.nan], [-0.0, 2.0**60]]),
        np.array([[2**60 + 1, 7], [-1, 0]]),
        np.array([[True, False], [False, True]]),
        np.array([[1.5, -0.0], [65504.0, 2**-24]], np.float16),
        np.array([[b"\xff", None], ["é".encode(), b""]], dtype=object),
    ],
    ids=lambda array: array.dtype.name,
)
async def test_inputs_and_outputs_of_any_type_are_logged_as_they_were(tmp_path: Path, array: np.ndarray):
    names = {"f": f"FP{array.dtype.itemsize * 8}", "i": "INT64", "b": "BOOL", "O": "BYTES"}
    predictor, log = made(tmp_path, [("x", names[array.dtype.kind], [-1, 2])])
    answer = await predictor.infer(InferRequest(id="r", inputs={"x": array}))
    await predictor.close()
    found = rows_of(predictor, log, tmp_path)
    assert [row.prediction_id for row in found] == ["r:0", "r:1"]
    for at, row in enumerate(found):
        assert row.inputs is not None
        assert row.outputs is not None
        assert row.inputs["x"].dtype == array.dtype
        wanted = array[at]
        same = row.inputs["x"].tolist() == wanted.tolist() if array.dtype.kind == "O" else None
        assert same or row.inputs["x"].tobytes() == wanted.tobytes()
        assert row.outputs["sum"].tobytes() == answer.outputs["sum"][at].tobytes()
        assert row.outputs["word"].tolist() == answer.outputs["word"][at]


async def test_requests_of_one_batch_replay_with_the_same_bits(tmp_path: Path):
    tags = {"max_batch_rows": "8", "max_batch_wait_ms": "50"}
    predictor, log = made(tmp_path, [("x", "FP64", [-1, 2])], tags=tags)
    values = np.random.default_rng(1).normal(size=(5, 1, 2))
    await asyncio.gather(
        *(predictor.infer(InferRequest(id=f"r{i}", inputs={"x": x})) for i, x in enumerate(values))
    )
    await predictor.close()
    found = rows_of(predictor, log, tmp_path)
    assert max(row.rows for row in found) > 1  # they were scored together
    champion = predictor.engine.routes.champion
    assert champion is not None
    result = compare(Rounded(), champion.signature, found)
    assert (result.equal, result.different, result.filled) == (5, 0, 0)


async def test_float32_and_texts_of_a_known_shape_are_logged_once(served_model: ServedModel):
    version = served_model.version()
    served_model.registry.promote("late", version)
    served_model.refresh()
    await served_model.infer(tensors(2))
    columns = prediction_columns(served_model.log.payloads)["late"]
    assert "tensors" not in columns.schema.names
    assert columns["batch_rows"].to_pylist() == [2, 2]


async def test_a_request_of_more_bytes_than_are_kept_is_logged_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recording, "MAX_REQUEST_BYTES", 100)
    predictor, log = made(tmp_path, [("x", "UINT8", [-1, 64])])
    for name, rows in (("small", 1), ("large", 2)):
        await predictor.infer(InferRequest(id=name, inputs={"x": np.ones((rows, 64), np.uint8)}))
    await predictor.close()
    found = {row.prediction_id: row.inputs is not None for row in rows_of(predictor, log, tmp_path)}
    assert found == {"small": True, "large:0": False, "large:1": False}


async def test_each_row_has_the_chance_of_its_arm(served_model: ServedModel, tmp_path: Path):
    one, two = served_model.version(0.5), served_model.version(0.75)
    rule = TrafficRule.model_validate(
        {"name": "nl", "when": [{"attribute": "country", "op": "in", "values": ["NL"]}], "to": one}
    )
    served_model.registry.begin_holdout("late", "q", 0.1)
    served_model.registry.set_traffic("late", {"one": (one, 0.3), "two": (two, 0.2)}, rules=[rule])
    served_model.refresh()
    for unit in range(60):
        await served_model.infer(tensors(id=f"u{unit}", parameters={"unit": f"user-{unit}"}))
    await served_model.infer(tensors(id="ruled", parameters={"attributes": {"country": "NL"}}))
    await served_model.infer(tensors(id="pinned"), path=f"/versions/{one}/infer")
    store = open_store(f"file://{tmp_path}/log")
    frames = [Frame(i + 1, each, 0) for i, each in enumerate(served_model.log.payloads)]
    add_records(store, "predictions", {"w": frames})
    rows = predictions(
        store, "late", LATER - timedelta(days=40_000), LATER, columns=["arm", "propensity"]
    ).to_pylist()
    found = {row["arm"]: row["propensity"] for row in rows}
    assert found == {
        "champion": pytest.approx(0.9 * 0.5), "one": pytest.approx(0.9 * 0.3), "two": pytest.approx(0.9 * 0.2),
        "holdout": pytest.approx(0.1), "rule:nl": 1.0, "pinned": None,
    }  # fmt: skip
    assert Counter(row["arm"] for row in rows)["champion"] > 0


async def test_the_champion_has_the_chance_of_an_arm_that_is_not_ready(served_model: ServedModel):
    one = served_model.version(0.5, fail="load")
    served_model.registry.set_traffic("late", {"one": (one, 0.3)})
    served_model.refresh()
    routes = served_model.engine.routes
    assert (routes.chance("champion"), routes.chance("one")) == (pytest.approx(1.0), None)
