"""Numbers and times out of range are refused by the schemas of functions, and not by arithmetic within them."""

from typing import Any

import pytest

from toque.functions.features import source_status
from toque.functions.features.jobs import feature_health, record_feature_health
from toque.functions.features.view_figures import feature_course, feature_health_history, feature_statistics
from toque.functions.maintenance.compaction import compact_tables
from toque.functions.maintenance.costs import sum_costs
from toque.functions.maintenance.features import erase_features
from toque.functions.monitoring import what_changed
from toque.functions.prediction_log.jobs import drain_share
from toque.functions.quotas import set_quota
from toque.functions.reporting.evidently_page import evidently_report
from toque.functions.reporting.explained_request import explain_prediction
from toque.functions.reporting.feature_page import feature_report
from toque.functions.reporting.jobs import alarm_report
from toque.functions.reporting.logged_requests import list_predictions
from toque.functions.retrieval.jobs import evaluate_retrieval, retrieve
from toque.functions.rollout.planning.jobs import plan_rollout
from toque.functions.runtime.errors import InvalidArguments

DATASET = {"name": "asked", "version": 0}
NOW = "2013-01-01T00:00:00Z"
BOUNDS: list[tuple[Any, dict[str, Any], str, float, float | None]] = [
    (alarm_report, {"model": "late"}, "days_before", 1, 36_500),
    (compact_tables, {}, "grace_days", 1, 36_500),
    (drain_share, {"count": 4}, "index", 0, None),
    (drain_share, {"index": 0}, "count", 1, None),
    (erase_features, {}, "grace_days", 1, 36_500),
    (evaluate_retrieval, {"view": "docs", "dataset": DATASET}, "k", 1, 250),
    (evidently_report, {"model": "late"}, "days", 1, 36_500),
    (evidently_report, {"model": "late"}, "max_rows", 30, None),
    (explain_prediction, {"model": "late", "prediction_id": "a", "predicted_at": NOW}, "samples", 2, 1_000),
    (feature_course, {"view": "weather"}, "parts", 1, 100),
    (feature_health, {}, "samples", 0, 1_000),
    (feature_report, {"view": "weather"}, "samples", 0, 1_000),
    (plan_rollout, {"model": "late", "version": 1}, "days", 1, 36_500),
    (retrieve, {"view": "docs", "question": "where?"}, "k", 1, 1_000),
    (set_quota, {"team": "vision"}, "at_once", 0, None),
    (set_quota, {"team": "vision"}, "cpus", 0, None),
    (set_quota, {"team": "vision"}, "gpu_hours", 0, None),
    (set_quota, {"team": "vision"}, "gpus", 0, None),
    (set_quota, {"team": "vision"}, "money", 0, None),
    (set_quota, {"team": "vision"}, "share", 0.001, 1_000),
    (source_status, {}, "loads", 0, None),
    (sum_costs, {}, "days", 1, 36_500),
    (what_changed, {"model": "late"}, "days", 1, 36_500),
    (what_changed, {"model": "late"}, "max_rows", 50, None),
]  # fmt: skip
HUGE = (1e300, 1e9, -1.0, 0)


@pytest.mark.parametrize("hours", HUGE)
@pytest.mark.parametrize(
    "function", [feature_statistics, feature_course, feature_health, record_feature_health, feature_report]
)
def test_a_span_that_no_calendar_holds_fits_no_schema(function: Any, hours: float) -> None:
    view = {"view": "weather"} if "view" in function.input_schema["properties"] else {}
    with pytest.raises(InvalidArguments, match="span_hours"):
        function.signature.load_strictly({**view, "span_hours": hours})


@pytest.mark.parametrize(
    "arguments",
    [{"before": "0001-01-01T00:00:00Z"}, {"before": "9999-12-31T23:59:59-23:59"}, {"hours": 1e300}, {"hours": 0}, {"limit": 10**20},
     {"limit": 0}],
)  # fmt: skip
def test_a_page_of_predictions_beyond_the_calendar_fits_no_schema(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArguments, match=next(iter(arguments))):
        list_predictions.signature.load_strictly({"model": "late", **arguments})


@pytest.mark.parametrize("days", [10**12, 0, -5])
def test_days_beyond_the_calendar_fit_no_schema(days: int) -> None:
    with pytest.raises(InvalidArguments, match="days"):
        feature_health_history.signature.load_strictly({"view": "weather", "days": days})


@pytest.mark.parametrize(
    ("function", "others", "name", "least", "most"),
    BOUNDS,
    ids=[f"{each.name}-{name}" for each, _, name, *_ in BOUNDS],
)
def test_a_number_out_of_its_bounds_fits_no_schema(
    function: Any, others: dict[str, Any], name: str, least: float, most: float | None
) -> None:
    far = 10**6 if most is None else most
    for fitting in (least, far):
        assert function.signature.load_strictly({**others, name: fitting})[name] == fitting
    for wrong in (least - 1, -(10**20), *(() if most is None else (most + 1, 10**20))):
        with pytest.raises(InvalidArguments, match=rf"{name}: .*(greater|less) than.* got {wrong}"):
            function.signature.load_strictly({**others, name: wrong})


@pytest.mark.parametrize(("index", "count"), [(1, 1), (4, 4), (9, 4)])
def test_a_share_that_there_is_not_is_refused(index: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"index={index} of count={count} shares"):
        drain_share(index, count)
