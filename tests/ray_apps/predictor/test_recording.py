"""What is logged of answers that are matrices of numbers, the way of most requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.prediction_log.records import decode_prediction, prediction_columns
from ray_apps.predictor.engine import Engine
from ray_apps.predictor.protocol import InferRequest
from ray_apps.predictor.recording import Recorder
from ray_apps.predictor.service import Predictor
from registry import Registry, Signature, TensorSpec, open_store
from tests.ray_apps.predictor.conftest import MemoryLog

Answers = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
X = np.array([[1, 2], [3, 4], [5, np.nan]], np.float32)


async def logged(
    tmp_path: Path, answers: Answers, *, rows: int = -1, **parameters: Any
) -> list[dict[str, Any]]:
    """The rows in the table after one request with three rows."""

    class Scorer:
        def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return answers(inputs)

    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[rows, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[rows, 1])],
    )
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    registry.create_model("late")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.json").write_text("{}")
    version = registry.create_version("late", path=tmp_path / "artifact", signature=signature)
    registry.promote("late", version.version)
    engine = Engine("late", registry, lambda *_: Scorer(), scratch=tmp_path / "loading")
    engine.follow_once()
    engine.load_wanted()
    log = MemoryLog()
    predictor = Predictor(engine, Recorder("late", log))
    await predictor.infer(InferRequest(id="r", inputs={"x": X}, parameters=parameters))
    await predictor.close()
    return prediction_columns(log.payloads)["late"].to_pylist()


async def test_each_row_is_logged_with_its_vector_and_its_answer(tmp_path: Path):
    found = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1] * 10}, unit="N1")
    assert [(row["prediction_id"], row["unit"], row["numeric"][0], row["outputs"]) for row in found] == [
        ("r:0", "N1", 1.0, [10.0]), ("r:1", "N1", 3.0, [30.0]), ("r:2", "N1", 5.0, [50.0]),
    ]  # fmt: skip
    assert np.isnan(found[2]["numeric"][1])


@pytest.mark.parametrize(
    "answers",
    [
        lambda inputs: {"y": inputs["x"][:1, :1]},
        lambda inputs: {"y": inputs["x"][:1, 0]},
        lambda _: {"y": np.float32(1.0).reshape(())},
    ],
    ids=["too few rows", "a vector of too few", "a scalar"],
)
async def test_answers_that_are_not_what_was_signed_are_left_out(tmp_path: Path, answers: Answers):
    found = await logged(tmp_path, answers)
    assert [(row["numeric"][0], row["outputs"]) for row in found] == [(1.0, None), (3.0, None), (5.0, None)]


async def test_a_float64_answer_is_logged_as_float32(tmp_path: Path):
    found = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1].astype(np.float64)})
    assert [row["outputs"] for row in found] == [[1.0], [3.0], [5.0]]


async def test_a_model_of_a_fixed_number_of_rows_has_one_record_without_vectors(tmp_path: Path):
    (found,) = await logged(tmp_path, lambda inputs: {"y": inputs["x"][:, :1]}, rows=3)
    assert (found["prediction_id"], found["numeric"], found["outputs"]) == ("r", None, None)


def test_an_arm_by_the_name_of_the_shadows_is_told_from_them():
    log = MemoryLog()
    recorder = Recorder("m", log)
    numbers = {"x": np.ones((1, 2), np.float32)}
    for shadow in (True, False, True):
        recorder.record(
            id="a", version=1, arm="shadow", shadow=shadow, unit=None, at_us=0, latency_ms=1.0, rows=1,
            inputs=numbers, outputs=numbers, plain=True,
        )  # fmt: skip
    assert [decode_prediction(payload)["shadow"] for payload in log.payloads] == [True, False, True]
