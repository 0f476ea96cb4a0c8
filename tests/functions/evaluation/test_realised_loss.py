from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.evaluation.realised_loss import score

AT = datetime(2013, 5, 1, tzinfo=UTC)


def rows(*cases: dict[str, Any]) -> pa.Table:
    defaults = {
        "version": 1,
        "shadow": False,
        "unit": None,
        "latency_ms": 1.0,
        "outputs": [0.5],
        "label": None,
    }
    full = [
        {"prediction_id": f"p{i}", "predicted_at": AT + timedelta(seconds=i)} | defaults | case
        for i, case in enumerate(cases)
    ]
    schema = pa.schema(
        [
            ("prediction_id", pa.string()),
            ("predicted_at", pa.timestamp("us", "UTC")),
            ("version", pa.int64()),
            ("shadow", pa.bool_()),
            ("unit", pa.string()),
            ("latency_ms", pa.float32()),
            ("outputs", pa.list_(pa.float32())),
            ("label", pa.float64()),
        ]
    )
    return pa.Table.from_pylist(full, schema=schema)


def test_log_loss_of_a_binary_outcome() -> None:
    scored = score(rows({"outputs": [0.25], "label": 1.0}, {"outputs": [0.25], "label": 0.0}))
    assert scored.loss == pytest.approx([math.log(4), math.log(4 / 3)])
    assert scored.expected == pytest.approx([0.25 * math.log(4) + 0.75 * math.log(4 / 3)] * 2)


def test_a_certain_and_wrong_probability_costs_no_more_than_the_clip_allows() -> None:
    scored = score(rows({"outputs": [1.0], "label": 0.0}, {"outputs": [0.0], "label": 1.0}), clip=0.01)
    assert scored.loss == pytest.approx([math.log(100)] * 2)


def test_log_loss_of_several_classes() -> None:
    scored = score(
        rows({"outputs": [0.5, 0.3, 0.2], "label": 2.0}, {"outputs": [0.5, 0.3, 0.2], "label": 0.0})
    )
    assert scored.loss == pytest.approx([math.log(5), math.log(2)], rel=1e-6)
    assert np.isnan(scored.expected).all()


def test_squared_error_is_capped() -> None:
    scored = score(
        rows({"outputs": [3.0], "label": 1.0}, {"outputs": [1e9], "label": 1.0}),
        loss="squared_error",
        cap=100.0,
    )
    assert scored.loss == pytest.approx([4.0, 100.0])


@pytest.mark.parametrize("outputs", [None, [], [math.nan], [math.inf], [0.5, math.nan]])
def test_an_answer_without_a_finite_output_is_an_error_and_has_no_loss(outputs: list[float] | None) -> None:
    scored = score(rows({"outputs": outputs, "label": 1.0}, {"outputs": [0.5], "label": 1.0}))
    assert scored.answered.tolist() == [False, True]
    assert np.isnan(scored.loss[0])
    assert scored.loss[1] == pytest.approx(math.log(2))


@pytest.mark.parametrize("label", [None, math.nan, -1.0, 2.0, math.inf])
def test_a_label_that_does_not_fit_the_output_counts_as_missing(label: float | None) -> None:
    scored = score(rows({"label": label}))
    assert scored.answered.tolist() == [True]
    assert np.isnan(scored.loss).all()
    assert np.isnan(scored.label).all()


def test_rows_are_in_time_order_and_a_missing_unit_is_the_request() -> None:
    scored = score(rows({"predicted_at": AT + timedelta(hours=1), "unit": "N1"}, {"unit": ""}))
    assert scored.id.tolist() == ["p1", "p0"]
    assert scored.unit.tolist() == ["p1", "N1"]


def test_a_retry_under_the_same_id_counts_once() -> None:
    scored = score(rows({"prediction_id": "a", "outputs": [0.1]}, {"prediction_id": "a", "outputs": [0.2]}))
    assert scored.first_by_id().output == pytest.approx([0.1])


def test_scoring_no_rows_gives_no_rows() -> None:
    assert len(score(rows())) == 0


def ranked(
    request: str, scores: list[float], labels: list[float | None], **more: Any
) -> list[dict[str, Any]]:
    """Rows of the items of one request."""
    return [
        {"prediction_id": f"{request}:{item}", "predicted_at": AT, "outputs": [score], "label": label, **more}
        for item, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]


def test_a_ranking_is_judged_by_request() -> None:
    table = rows(
        *ranked("a", [0.1, 0.9], [1.0, 0.0]),
        *ranked("b", [0.9, 0.1], [1.0, 0.0], unit="u"),
        *ranked("b", [0.1, 0.9], [1.0, 0.0], version=2, shadow=True, unit="u"),
        *ranked("c", [0.1, 0.9], [1.0, None]),
        *ranked("d", [0.1, math.nan], [1.0, 0.0]),
        {"prediction_id": "e", "predicted_at": AT, "outputs": [0.5], "label": 1.0},
    )
    found = score(table, loss="ndcg_loss")
    last = 1 - 1 / math.log2(3)  # the only relevant item stands second of two
    by_request = dict(zip(zip(found.id, found.version, strict=True), found.loss, strict=True))
    assert by_request[("a", 1)] == pytest.approx(last)
    assert by_request[("b", 1)] == 0.0
    assert by_request[("b", 2)] == pytest.approx(last)
    assert np.isnan(by_request[("c", 1)])  # an item has no label yet
    assert np.isnan(by_request[("d", 1)])
    assert by_request[("e", 1)] == 0.0
    assert found.unit.tolist() == ["a", "u", "u", "c", "d", "e"]
    assert found.answered.tolist() == [True, True, True, True, False, True]


def test_an_item_that_is_sent_again_counts_once() -> None:
    items = ranked("a", [0.9, 0.1], [0.0, 1.0])
    once, twice = (score(rows(*each), loss="ndcg_loss") for each in (items, items + items))
    assert (len(twice), twice.loss[0]) == (1, once.loss[0])
    assert len(score(rows(), loss="ndcg_loss")) == 0
