"""A version answers its logged inputs again, in the batches that they were in, and every bit is compared."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.functions.prediction_log.logbook import T0, record
from toque.functions import Context, use_context
from toque.functions.evaluation.log_replay import ReplayResult, compare, replay_predictions
from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.reading.exact import ExactRow
from toque.functions.prediction_log.records import BatchPlace, LoggedTensor
from toque.functions.prediction_log.writing.drain import add_records
from toque.functions.runtime.errors import InvalidArguments
from toque.registry import Signature, TensorSpec, open_store

SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP64", shape=[-1, 2])],
    outputs=[TensorSpec(name="y", datatype="FP64", shape=[-1])],
    example={"x": [[0.0, 1.0]]},
)


class ByPlace:
    """Answers with a sum whose last bit depends on the row's place and on how many rows there are, as a matrix product may."""

    def __init__(self) -> None:
        self.given: list[list[list[float]]] = []

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.given.append(x.tolist())
        return {"y": x.sum(axis=1) + np.arange(len(x)) * 2.0**-40 + len(x) * 2.0**-30}


def row(
    name: str, x: tuple[float, float], y: float, *, batch: str, at: int = 0, rows: int = 1, **other: Any
) -> ExactRow:
    fields: dict[str, Any] = {
        "prediction_id": name, "predicted_at": T0, "arm": "champion", "shadow": False, "answered": True,
        "inputs": {"x": np.array(x)}, "outputs": {"y": np.array(y)}, "batch": batch, "at": at, "rows": rows,
        "missing": False,
    }  # fmt: skip
    return ExactRow(**(fields | other))


def answered(*x: tuple[float, float]) -> list[float]:
    return ByPlace().predict({"x": np.array(x)})["y"].tolist()


def test_rows_of_a_batch_are_scored_together_at_their_places() -> None:
    one, two, three = answered((1, 2), (3, 4), (5, 6))
    (alone,) = answered((1, 2))
    scorer = ByPlace()
    found = compare(
        scorer,
        SIGNATURE,
        [
            row("a", (1, 2), one, batch="b", at=0, rows=3),
            row("b", (3, 4), two, batch="b", at=1, rows=3),
            row("c", (5, 6), three, batch="b", at=2, rows=3),
            row("d", (1, 2), alone, batch="d"),
        ],
    )
    assert (found.rows, found.equal, found.different, found.filled) == (4, 4, 0, 0)
    assert scorer.given == [[[1, 2], [3, 4], [5, 6]], [[1, 2]]]
    assert alone != one


def test_a_place_that_is_not_in_the_log_is_filled() -> None:
    _, two, _ = answered((1, 2), (3, 4), (5, 6))
    scorer = ByPlace()
    found = compare(scorer, SIGNATURE, [row("b", (3, 4), two, batch="b", at=1, rows=3)])
    assert (found.equal, found.filled) == (1, 1)
    assert scorer.given == [[[3, 4]] * 3]


def test_one_bit_that_differs_is_shown() -> None:
    (right,) = answered((1, 2))
    wrong = float(np.nextafter(right, 9))
    found = compare(ByPlace(), SIGNATURE, [row("a", (1, 2), wrong, batch="a")])
    assert (found.equal, found.different) == (0, 1)
    (shown,) = found.first
    assert (shown.prediction_id, shown.output) == ("a", "y")
    assert shown.logged != shown.replayed


def test_another_nan_another_zero_and_another_type_are_differences() -> None:
    class Same:
        def __init__(self, y: Any) -> None:
            self.y = y

        def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:  # noqa: ARG002 - it answers always so
            return {"y": np.array([self.y])}

    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    for logged, now in ((0.0, -0.0), (np.nan, other_nan), (1.0, np.float32(1.0))):
        found = compare(Same(now), SIGNATURE, [row("a", (1, 2), logged, batch="a")])
        assert (found.equal, found.different) == (0, 1)
        assert compare(Same(logged), SIGNATURE, [row("a", (1, 2), logged, batch="a")]).equal == 1


def test_rows_that_cannot_be_scored_again_are_counted_by_reason() -> None:
    _, second = answered((5, 6), (7, 8))
    (alone,) = answered((7, 8))
    rows = [
        row("a", (1, 2), 0.0, batch="a", answered=False, outputs=None),
        row("b", (1, 2), 0.0, batch="b", inputs=None),
        row("c", (np.nan, 6), 0.0, batch="c", at=0, rows=2, missing=True),
        row("d", (7, 8), alone, batch="c", at=1, rows=2),
    ]
    found = compare(ByPlace(), SIGNATURE, rows, abstains=True)
    assert found.skipped == {"abstained": 1, "not answered": 1, "not kept bit for bit": 1}
    assert (found.rows, found.equal, found.different) == (4, 1, 0)
    assert compare(ByPlace(), SIGNATURE, [rows[3]], abstains=True).different == 1
    assert second != alone


def test_two_requests_of_one_id_and_moment_are_two_batches() -> None:
    (alone,) = answered((1, 2))
    scorer = ByPlace()
    found = compare(scorer, SIGNATURE, [row("a", (1, 2), alone, batch="a")] * 2)
    assert (found.equal, len(scorer.given)) == (2, 2)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    url = f"file://{tmp_path}/store"
    return Context(open_store(url), url, clock=lambda: T0 + timedelta(hours=1))


def replay(used: Context, **asked: Any) -> ReplayResult:
    with use_context(used):
        return replay_predictions("late", **asked)


def register_xgboost(used: Context, folder: Path) -> Any:
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 4))
    booster = xgboost.train(
        {"max_depth": 3, "nthread": 1}, xgboost.DMatrix(x, x @ [1.0, -2.0, 0.5, 0.1]), num_boost_round=8
    )
    folder.mkdir()
    booster.save_model(folder / "model.ubj")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP64", shape=[-1, 4])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1])],
    )
    registry = used.registry()
    registry.create_model("late")
    registry.create_version("late", path=folder, signature=signature)
    return booster, rng.normal(size=(6, 4))


def test_a_version_of_the_registry_replays_what_was_logged(context: Context, tmp_path: Path) -> None:
    from toque.functions.model_formats.load import load

    _, x = register_xgboost(context, tmp_path / "artifact")
    signature = context.registry().get_version("late", 1).signature
    assert signature is not None
    y = load(tmp_path / "artifact", signature=signature).predict({"x": x})["y"]
    bare = {
        "numeric": None,
        "categorical": None,
        "outputs": None,
        "missing": None,
        "entities": None,
        "version": 1,
    }

    def logged(name: str, rows: slice, **other: Any) -> bytes:
        count = rows.stop - rows.start
        tensors = [
            LoggedTensor.of("x", x[rows], rows=count, output=False),
            LoggedTensor.of("y", y[rows], rows=count, output=True),
        ]
        return record(name, rows=count, tensors=tensors, **(bare | other))

    payloads = [
        logged("a", slice(0, 1)),
        logged("b", slice(1, 3)),
        logged("c", slice(3, 4), place=BatchPlace("n-1", 0, 3)),
        logged("d", slice(4, 6), place=BatchPlace("n-1", 1, 3)),
        logged("e", slice(0, 1), version=2),
    ]
    add_records(
        context.store, "predictions", {"w": [Frame(i + 1, each, 0) for i, each in enumerate(payloads)]}
    )
    found = replay(context, version=1)
    assert (found.version, found.rows, found.equal, found.different) == (1, 6, 6, 0)
    assert replay(context, version=1, limit=2).rows >= 2
    with pytest.raises(InvalidArguments, match="limit: Input should be greater"):
        replay(context, version=1, limit=0)
