"""Numbers and times out of range are refused by the schemas of functions, and not by arithmetic within them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from toque.functions.features.jobs import feature_health, record_feature_health
from toque.functions.features.view_figures import feature_course, feature_health_history, feature_statistics
from toque.functions.prediction_log.jobs import drain_share
from toque.functions.reporting.feature_page import feature_report
from toque.functions.reporting.logged_requests import list_predictions
from toque.functions.runtime.errors import InvalidArguments

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
    [
        {"before": "9999-12-31T23:59:59-23:59"},
        {"hours": 1e300},
        {"hours": 0},
        {"limit": 10**20},
        {"limit": 0},
    ],
)
def test_a_page_of_predictions_beyond_the_calendar_fits_no_schema(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArguments, match=next(iter(arguments))):
        list_predictions.signature.load_strictly({"model": "late", **arguments})


@pytest.mark.parametrize("year", [1, 1899, 2201, 9999])
def test_a_page_of_predictions_before_a_time_without_hours_around_it_is_refused(year: int) -> None:
    with pytest.raises(ValueError, match=f"before={year:04}-.* between the years 1900 and 2200"):
        list_predictions("late", before=datetime(year, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize("days", [10**12, 0, -5])
def test_days_beyond_the_calendar_fit_no_schema(days: int) -> None:
    with pytest.raises(InvalidArguments, match="days"):
        feature_health_history.signature.load_strictly({"view": "weather", "days": days})


@pytest.mark.parametrize(("index", "count"), [(1, 1), (4, 4), (9, 4)])
def test_a_share_that_there_is_not_is_refused(index: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"index={index} of count={count} shares"):
        drain_share(index, count)
