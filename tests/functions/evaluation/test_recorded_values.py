"""Labels and answers of any size in the data of an offline gate: judged, or refused by name."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pyarrow as pa
import pytest

from tests.conditions.values import any_recorded
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.numbers import COUNT_METRICS, NUMBER_METRICS
from toque.functions.model_formats.errors import TrainingDataError
from toque.functions.model_formats.matrices import number_labels

METRICS = NUMBER_METRICS | COUNT_METRICS


@any_recorded
def test_a_label_is_one_whose_squares_can_be_summed_or_refused(recorded: float) -> None:
    table = pa.table({"delay": [1.0, recorded, 2.0]})
    if not abs(recorded) < 1e100:
        with pytest.raises(TrainingDataError, match="'delay' has 1 values in 3 rows"):
            number_labels(table, "delay")
        return
    assert math.isfinite(float(np.square(number_labels(table, "delay")).sum()))


@any_recorded
@pytest.mark.parametrize("struck", ["label", "answer"])
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_finite_or_says_which_values_it_cannot_take(
    name: str, struck: str, recorded: float
) -> None:
    columns = {"label": np.array([1.0, 2.0, 4.0]), "answer": np.array([1.5, 2.5, 3.5])}
    columns[struck][1] = recorded
    accepted = abs(recorded) < 1e100 and (name not in COUNT_METRICS or recorded >= 0)
    with contextlib.nullcontext() if accepted else pytest.raises(EvaluationError):
        assert math.isfinite(METRICS[name](columns["label"], columns["answer"]))
