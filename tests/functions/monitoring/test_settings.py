"""Settings of monitors that cannot work are refused where they are made, of every monitor alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from toque.functions.monitoring import (
    AnswerMonitor,
    DriftMonitor,
    EstimateMonitor,
    OperationsMonitor,
    PerformanceMonitor,
    QualityMonitor,
    SliceOptions,
    VectorMonitor,
)

WATCHED: dict[type[BaseModel], dict[str, Any]] = {VectorMonitor: {"texts": ("a",)}}
WITH_COHORTS = (
    AnswerMonitor,
    DriftMonitor,
    EstimateMonitor,
    OperationsMonitor,
    PerformanceMonitor,
    QualityMonitor,
    SliceOptions,
    VectorMonitor,
)


@pytest.mark.parametrize("cohort", [timedelta(0), timedelta(microseconds=-1), timedelta(days=-1)])
@pytest.mark.parametrize("settings", WITH_COHORTS)
def test_a_cohort_without_length_is_refused(settings: type[BaseModel], cohort: timedelta) -> None:
    with pytest.raises(ValidationError, match=r"cohort\n.*greater than 0"):
        settings(cohort=cohort, **WATCHED.get(settings, {}))


@pytest.mark.parametrize("settings", [EstimateMonitor, PerformanceMonitor])
def test_labels_that_are_due_before_their_predictions_are_refused(settings: type[BaseModel]) -> None:
    assert settings(label_delay=timedelta(0))
    with pytest.raises(ValidationError, match=r"label_delay\n.*greater than or equal to 0"):
        settings(label_delay=timedelta(microseconds=-1))


@pytest.mark.parametrize("wrong", [{"k": 5, "n": 4}, {"k": 9}, {"k": 2}])
@pytest.mark.parametrize("settings", [AnswerMonitor, DriftMonitor, VectorMonitor])
def test_more_windows_than_are_looked_at_are_refused(
    settings: type[BaseModel], wrong: dict[str, int]
) -> None:
    with pytest.raises(ValidationError, match="k <= n, got k="):
        settings(**wrong, **WATCHED.get(settings, {}))
