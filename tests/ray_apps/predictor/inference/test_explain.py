"""Explanations: Shapley values that add up, of numbers and texts, bounded, and never instead of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.ray_apps.predictor.inference.request_parameters import Explainer, ExplainRequest, parse_explain
from toque.ray_apps.predictor.protocol.errors import BadRequest
from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.registry import ModelVersion, Signature, TensorSpec


class Scorer:
    """a + 2 b + 10 a b + 5 if the text is UA; and a second column of its half; 0 for what is missing."""

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        a, b = np.nan_to_num(inputs["numeric"]).T
        known = (inputs["categorical"][:, 0] == b"UA") * 5.0
        answer = a + 2 * b + 10 * a * b + known
        return {"p": np.stack([answer, answer / 2], axis=1).astype(np.float32)}


def version(*, example: bool = True, **spec: Any) -> LoadedVersion:
    signature = Signature(
        inputs=[
            TensorSpec(
                name="numeric", **{"datatype": "FP32", "shape": [-1, 2], "columns": ["a", "b"], **spec}
            ),
            TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1]),
        ],
        outputs=[TensorSpec(name="p", datatype="FP32", shape=[-1, 2])],
        example={"numeric": [[0, 0]], "categorical": [["none"]]} if example else None,
    )
    record = ModelVersion.model_construct(model="late", version=1, signature=signature, tags={}, files={})
    return LoadedVersion(record, Scorer())


def inputs(*rows: tuple[float, float, bytes]) -> dict[str, Any]:
    texts = np.array([[row[2]] for row in rows], dtype=object)
    return {"numeric": np.array([row[:2] for row in rows], np.float32), "categorical": texts}


def explained(given: Mapping[str, Any], **wanted: Any) -> list[Any]:
    model = version()
    rows = len(given["numeric"])
    return Explainer(model, given, rows, ExplainRequest(**wanted)).explain(model.predict(given))


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.sampled_from([b"UA", b"B6"])), min_size=1)
)
def test_attributions_are_the_shapley_values_and_add_up(rows: list[tuple[float, float, bytes]]) -> None:
    for (a, b, carrier), one in zip(rows, explained(inputs(*rows)), strict=True):
        value = a + 2 * b + 10 * a * b + 5 * (carrier == b"UA")
        share = 1 if value >= 0 else 0.5  # the largest of the row's two values is explained
        assert one["index"] == (0 if value >= 0 else 1)
        wanted = {"a": a + 5 * a * b, "b": 2 * b + 5 * a * b, "categorical": 5 * (carrier == b"UA")}
        assert one["attributions"] == {name: pytest.approx(share * v) for name, v in wanted.items()}
        assert one["baseline"] + sum(one["attributions"].values()) == pytest.approx(one["value"])


def test_the_same_row_has_the_same_explanation_and_missing_is_a_baseline_too() -> None:
    row = inputs((2.0, 3.0, b"UA"))
    assert explained(row) == explained(row)
    assert explained(row, baseline="missing") == explained(row)  # nothing is 0 here, as the example is


def test_rows_that_were_not_predicted_have_none() -> None:
    given = inputs((1.0, 1.0, b"UA"), (np.nan, 1.0, b"UA"))
    model = version()
    outputs = model.predict(given, abstained=[1])
    first, second = Explainer(model, given, 2, ExplainRequest()).explain(outputs, [1])
    assert first["value"] == pytest.approx(18)
    assert second is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("yes", "expected true or an object"),
        ({"sample": 3}, "expected true or an object"),
        ({"samples": 1}, "samples: expected 2 to 1000, got 1"),
        ({"samples": 2.5}, "samples: expected 2 to 1000"),
        ({"samples": True}, "samples: expected 2 to 1000"),
        ({"baseline": "mean"}, r"baseline: expected one of \['example', 'missing'\], got 'mean'"),
        ({"output": 3}, "output: expected a name, got 3"),
        ({"output": "q"}, r"no output 'q'; the model gives \['p'\]"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Explainer(
            version(), inputs((1.0, 1.0, b"UA")), 1, parse_explain({"explain": wanted}) or ExplainRequest()
        )


def test_nothing_is_explained_unless_asked() -> None:
    assert parse_explain({}) is None
    assert parse_explain({"explain": False}) is None
    assert parse_explain({"explain": True}) == ExplainRequest()


def test_what_takes_too_long_or_has_no_baseline_is_refused() -> None:
    row = inputs((1.0, 1.0, b"UA"))
    many = {name: np.repeat(array, 1_000, axis=0) for name, array in row.items()}
    with pytest.raises(BadRequest, match=r"1000 rows x 3 features x 400 samples are 1200000 evaluations"):
        Explainer(version(), many, 1_000, ExplainRequest(samples=400))
    with pytest.raises(BadRequest, match="there is no example of the shape of 'numeric'; use 'missing'"):
        Explainer(version(example=False), row, 1, ExplainRequest())
    whole = version(datatype="INT64")
    with pytest.raises(BadRequest, match="'numeric' is INT64, which has no missing value"):
        Explainer(whole, row, 1, ExplainRequest(baseline="missing"))


async def test_an_answer_comes_with_its_explanation_and_is_logged_as_ever(served_model: ServedModel) -> None:
    response = await served_model.infer(tensors(2, parameters={"explain": True}))
    assert response.status_code == 200, response.text
    answer = response.json()
    data = answer["outputs"][0]["data"]
    first, second = answer["parameters"]["explanation"]
    assert first["value"] == pytest.approx(data[0])
    assert first["attributions"].keys() == {"distance", "wind", "carrier"}
    assert second == first
    assert len(served_model.log.payloads) == 1
    plain = (await served_model.infer(tensors(2))).json()
    assert plain["outputs"][0]["data"] == data
    assert "explanation" not in plain["parameters"]


async def test_a_wrong_question_is_a_400_that_names_the_field(served_model: ServedModel) -> None:
    response = await served_model.infer(tensors(parameters={"explain": {"samples": 0}}))
    assert response.status_code == 400
    assert "parameters.explain.samples" in response.json()["error"]
