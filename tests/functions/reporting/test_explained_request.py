"""A logged prediction is explained by the version that answered: attributions of a linear model are known by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from toque.functions import Context, use_context
from toque.functions.model_formats.load import PROGRAM_FILE
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import TRACED_PREDICTIONS
from toque.functions.reporting import explain_prediction
from toque.registry import NotFound, Signature, Table, TensorSpec, open_store

AT = datetime(2026, 3, 2, 9, tzinfo=UTC)
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2], columns=["distance", "wind"])],
    outputs=[TensorSpec(name="p", datatype="FP32", shape=[-1])],
    example={"x": [[1.0, 1.0]]},
)


class Linear(torch.nn.Module):
    """2 distance - 3 wind + 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x[:, 0] - 3 * x[:, 1] + 1


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "prediction_id": name, "model": "late", "version": 1, "arm": "champion", "shadow": False, "unit": None,
        "predicted_at": AT, "latency_ms": 1.0, "numeric": [4.0, 3.0], "categorical": None, "outputs": [0.0],
        "missing": [], "entities": "{}", "day": f"{AT:%Y-%m-%d}", "trace_id": None, "stages": None,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder: Path = tmp_path_factory.mktemp("explained")
    url = f"file://{folder}/store"
    made = Context(open_store(url), url, actor="tests", clock=lambda: AT + timedelta(hours=1))
    files = folder / "files"
    files.mkdir()
    save_program(
        export_program(Linear(), {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}), files / PROGRAM_FILE
    )
    registry = made.registry()
    registry.create_model("late")
    for _ in range(2):
        registry.create_version("late", files, signature=SIGNATURE)
    rows = [
        row("a", version=2, shadow=True, arm="shadow"),
        row("a"),
        row("abstained", outputs=None, missing=["wind"]),
        row("other", numeric=[4.0]),
    ]
    log = Table(made.store, predictions_table("late"))
    log.append(pa.Table.from_pylist(rows, schema=TRACED_PREDICTIONS), partition_by=["day"])
    return made


def test_attributions_are_those_of_the_version_that_answered_and_add_up(used: Context) -> None:
    with use_context(used):
        found = explain_prediction(model="late", prediction_id="a", predicted_at=AT)
        assert found == explain_prediction(model="late", prediction_id="a", predicted_at=AT)
    assert (found.version, found.output, found.value, found.baseline) == (1, "p", 0.0, 0.0)
    assert found.attributions == {"distance": pytest.approx(2 * (4 - 1)), "wind": pytest.approx(-3 * (3 - 1))}


def test_what_cannot_be_explained_is_refused_with_the_reason(used: Context) -> None:
    def asked(name: str, **changes: Any) -> None:
        with use_context(used):
            explain_prediction(model="late", prediction_id=name, predicted_at=AT, **changes)

    with pytest.raises(ValueError, match="abstained was not answered"):
        asked("abstained")
    with pytest.raises(ValueError, match="does not hold the inputs of other as late@1 saw them"):
        asked("other")
    with pytest.raises(NotFound, match="no prediction 'gone'"):
        asked("gone")
    with pytest.raises(ValueError, match=r"samples: .*greater than or equal to 2, got 1"):
        asked("a", samples=1)
