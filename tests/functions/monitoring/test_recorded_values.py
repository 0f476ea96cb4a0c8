"""Labels and answers of any size that the log holds: the performance monitor goes on, and still finds a broken model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.conditions.values import any_recorded
from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.realised_loss import score
from toque.functions.monitoring.performance import Cohort, PerformanceMonitor, PerformanceState, judge

START = datetime(2026, 3, 2, tzinfo=UTC)
STRUCK, BROKEN, COHORTS, ROWS = 10, 15, 30, 100


def logged(day: int, label: np.ndarray, answer: np.ndarray) -> pa.Table:
    names = [f"{day}-{row}" for row in range(ROWS)]
    return pa.table(
        {
            "prediction_id": names,
            "version": [1] * ROWS,
            "shadow": [False] * ROWS,
            "unit": names,
            "predicted_at": pa.array([START + timedelta(days=day)] * ROWS, pa.timestamp("us", "UTC")),
            "latency_ms": [1.0] * ROWS,
            "outputs": pa.array([[value] for value in answer], pa.list_(pa.float32())),
            "label": label,
        }
    )


@any_recorded
@pytest.mark.parametrize("struck", ["label", "answer"])
@pytest.mark.parametrize("loss", ["squared_error", "poisson_deviance", "log_loss"])
@pytest.mark.parametrize("detector", ["cusum", "page_hinkley"])
def test_no_recorded_value_blinds_the_performance_monitor(
    detector: Any, loss: Loss, struck: str, recorded: float
) -> None:
    rng, alarms = np.random.default_rng(1), []
    monitor = PerformanceMonitor(loss=loss, detector=detector, threshold=5.0)
    state = PerformanceState.begin(1, 0, validated_loss=None)
    for day in range(COHORTS):
        mean = rng.uniform(0.1, 0.6, ROWS) if loss == "log_loss" else rng.uniform(1.0, 6.0, ROWS)
        label = rng.binomial(1, mean) if loss == "log_loss" else rng.poisson(mean)
        columns = {
            "label": label.astype(float),
            "answer": mean if day < BROKEN else 1.0 - mean if loss == "log_loss" else 6.0 * mean,
        }
        if day == STRUCK:
            columns[struck][3] = recorded
        rows = score(logged(day, **columns), loss=loss)
        state, verdicts = judge(state, Cohort.of(day, rows), monitor)
        alarms += [day for verdict in verdicts if verdict.kind == "alarm"]
        state = PerformanceState.model_validate_json(state.model_dump_json())
    assert [day for day in alarms if day >= BROKEN]
