"""Several classes before their labels are there: losses, and shares of the classes once only these change."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import EstimateMonitor, estimate_performance, performance_estimates
from toque.functions.monitoring.estimate_monitor import EstimateState
from toque.functions.monitoring.estimators import Binary, ClassRows, estimate
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.runtime import use_context
from toque.functions.stats.estimate import ScoreSketch
from toque.registry import Signature, Table, TensorSpec

MODEL, ROWS = "late", 600
MONITOR = EstimateMonitor(min_labels=1_000)
KINDS = ("bus", "tram", "train")
BEFORE, AFTER = (0.5, 0.3, 0.2), (0.15, 0.25, 0.6)


def register(served: ServedModel, output: str = "probability") -> None:
    """Make a version of three classes the champion."""
    registry = served.registry()
    registry.create_model(MODEL, exist_ok=True)
    path = served.root / "model.txt"
    path.write_text(output)
    signature = Signature(
        inputs=[TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["speed"])],
        outputs=[TensorSpec(name=output, datatype="FP32", shape=[-1, 3], columns=list(KINDS))],
    )
    made = registry.create_version(MODEL, path, signature=signature)
    registry.set_alias(MODEL, "champion", made.version)


def serve(served: ServedModel, days: int, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Answer rows of days by Bayes' rule with the shares of before; returns the realised shares of each day."""
    centres, realised, rows, labels = np.array([-1.5, 0.0, 1.5]), [], [], []
    for _ in range(days):
        truth = served.rng.choice(3, ROWS, p=shares)
        seen = served.rng.normal(centres[truth], 0.8)
        weight = np.array(BEFORE) * np.exp(-((seen[:, None] - centres) ** 2) / (2 * 0.8**2))
        p = weight / weight.sum(axis=1, keepdims=True)
        for i in range(ROWS):
            at = served.now + timedelta(days=1) * (i + 0.5) / ROWS
            name = f"{served.now:%Y%j}-{i}"
            rows.append(
                {"prediction_id": name, "model": MODEL, "version": 1, "arm": "champion", "shadow": False, "unit": name,
                 "predicted_at": at, "latency_ms": 4.0, "numeric": [seen[i]], "categorical": [], "outputs": p[i].tolist(),
                 "day": f"{at:%Y-%m-%d}"}
            )  # fmt: skip
            labels.append(
                {"prediction_id": name, "label": float(truth[i]), "observed_at": at, "received_at": at, "day": f"{at:%Y-%m-%d}"}
            )  # fmt: skip
        realised.append(np.bincount(truth, minlength=3) / ROWS)
        served.now += timedelta(days=1)
    for table, values, schema in (
        (predictions_table(MODEL), rows, PREDICTIONS),
        (LABELS_TABLE, labels, LABELS),
    ):
        Table(served.store, table).append(pa.Table.from_pylist(values, schema=schema), partition_by=["day"])
    return realised


def found(measure: str) -> list[Any]:
    return [each for each in performance_estimates(MODEL) if each.measure == measure]


def test_classes_are_estimated_before_their_labels_and_their_shares_follow_a_label_shift(
    served: ServedModel,
) -> None:
    register(served)
    with use_context(served.context()):
        serve(served, 1, BEFORE)
        assert "uncalibrated" in estimate_performance(MODEL, MONITOR).text
        assert found("share of train") == []  # no labels yet, so nothing is known of how trains are called
        serve(served, 4, BEFORE)
        (shifted,) = serve(served, 1, AFTER)
        watched = estimate_performance(MODEL, MONITOR)
        assert "log_loss about" in watched.text
        assert "95 % interval" in watched.text
        losses = found("log_loss")
        assert [each.agreed for each in losses] == [True] * 5 + [None]
        assert all(each.low < each.estimate < each.high for each in losses)
        assert "covariate shift" in losses[0].assumes
        last = {kind: found(f"share of {kind}")[-1] for kind in KINDS}
        for kind, share in zip(KINDS, shifted, strict=True):
            assert last[kind].realised is None
            assert abs(last[kind].estimate - share) < 4 * (last[kind].high - last[kind].low) / 3.92
            assert "label shift" in last[kind].assumes
        assert last["train"].low > 0.3  # it was 0.2 while there were labels
        serve(served, 1, AFTER)
        estimate_performance(MODEL, MONITOR)
        assert [each.agreed for each in found("share of train")[-2:]] == [True, None]


def test_answers_that_tell_nothing_apart_give_no_shares_and_say_so(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(4, requests=400)
        estimate_performance(MODEL, MONITOR)
        assert found("share of 1")
        # labels that follow no score: the version's answers say nothing about them
        told = EstimateState(version=2, next_cohort=0, next_label=0)
        told = told.model_copy(
            update={"labelled": ScoreSketch.of([0.3, 0.7] * 1_000, [0.0, 0.0, 1.0, 1.0] * 500)}
        )
        rows = ClassRows(np.zeros(50, np.int64), np.full((50, 1), 0.3), np.full(50, np.nan))
        _, said = estimate(told, 0, rows, MONITOR, Binary(0.01))
    (nothing,) = [each for each in said if each.measure == "shares"]
    assert nothing.verdict == "insufficient"
    assert "do not tell the classes apart" in nothing.text


def test_an_outcome_without_an_estimate_is_refused_by_name(served: ServedModel) -> None:
    register(served, "label_probability")
    with (
        use_context(served.context()),
        pytest.raises(ValueError, match=r"'multilabel'.*depend on each other"),
    ):
        estimate_performance(MODEL, MONITOR)
    register(served)
    with use_context(served.context()), pytest.raises(ValueError, match="use loss='log_loss'"):
        estimate_performance(MODEL, EstimateMonitor(loss="squared_error"))


def test_a_state_of_an_earlier_release_goes_on() -> None:
    state = EstimateState(version=1, next_cohort=5, next_label=4, labelled=ScoreSketch.of([0.2], [1.0]))
    kept = json.loads(state.model_dump_json())
    del kept["classes"]
    assert EstimateState.model_validate(kept) == state
