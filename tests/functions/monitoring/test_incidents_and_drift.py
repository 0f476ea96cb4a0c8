"""A broken pipe is not drift: incidents from the real log and views, what they excuse, and what they may not cause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tests.functions.monitoring.conftest import ServedModel
from toque.featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Freshness,
    InRange,
)
from toque.functions.monitoring import (
    Alarm,
    DriftMonitor,
    QualityMonitor,
    results_table,
    standing_alarms,
    watch_drift,
    watch_quality,
)
from toque.functions.monitoring import alarms as alarms_of
from toque.functions.retraining.policy import RetrainingPolicy, RetrainState, Situation, decide
from toque.functions.runtime import use_context
from toque.registry import Table

MODEL = "late"
DAY = timedelta(days=1)


def inspect(served: ServedModel, days: int) -> list[Alarm]:
    """Serve some days and watch, quality first, as an inspection does; the alarms that were raised."""
    served.serve(days, requests=60)
    return [*watch_quality(MODEL).alarms, *watch_drift(MODEL).alarms]


def broken_wind(served: ServedModel, monkeypatch: pytest.MonkeyPatch, value: float | None) -> None:
    """From now on the wind that is logged is `value`."""
    as_before = served._row

    def row(asked: Any, *rest: Any) -> dict[str, Any]:
        made: dict[str, Any] = as_before(asked, *rest)
        return made | {"numeric": [value, made["numeric"][1]]}

    monkeypatch.setattr(served, "_row", row)


def said(alarms: list[Alarm]) -> list[tuple[str, str, tuple[str, ...], bool]]:
    return [(one.monitor, one.subject, one.columns, one.recovered) for one in alarms]


def decision(alarm: Alarm, **world: Any) -> tuple[str, str]:
    at = alarm.raised_at
    made = decide(
        RetrainState(), alarm, Situation(champion=alarm.version, wall=at, **world), RetrainingPolicy(), at
    )
    return made.action, made.rule


def standing_incidents() -> dict[str, str]:
    return {
        name: one.text for one in standing_alarms(MODEL) if one.monitor == "quality" for name in one.columns
    }


def test_a_healthy_month_has_no_incident_and_one_row_a_day(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        assert inspect(served, 20) == []
        rows = Table(served.store, results_table(MODEL)).read().to_pylist()
    quality = [row for row in rows if row["monitor"] == "quality"]
    assert {(row["subject"], row["verdict"]) for row in quality} == {("rows", "ok")}
    assert len({row["start"] for row in quality}) == len(quality)


@pytest.mark.parametrize(("value", "kind"), [(7.0, "constant"), (None, "nulls")])
def test_drift_of_a_broken_column_is_on_record_as_explained_and_retrains_nothing(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, value: float | None, kind: str
) -> None:
    served.register()
    with use_context(served.context()):
        assert inspect(served, 8) == []
        with monkeypatch.context() as patch:
            broken_wind(served, patch, value)
            first, *drift = inspect(served, 2)  # the incident is named by the first cohort that is due
            assert said([first]) == [("quality", kind, ("wind",), False)]
            drift += inspect(served, 10)
            assert said(drift) == [("drift", "features spoiled by an incident", ("wind",), False)]
            assert drift[0].explained_by == (first.key,)
            for alarm in (first, *drift):
                assert decision(alarm, incidents=standing_incidents())[0] == "skip"
            assert decision(first)[1] == "no_trigger"
            assert decision(drift[0])[1] == "explained"
        after = inspect(served, 14)
        assert said(after) == [
            ("quality", kind, (), True),
            ("drift", "features spoiled by an incident", ("wind",), True),
        ]
        assert standing_alarms(MODEL) == []


def test_drift_that_outlives_its_incident_is_told_as_drift(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    with use_context(served.context()):
        assert inspect(served, 8) == []
        with monkeypatch.context() as patch:
            broken_wind(served, patch, 7.0)
            inspect(served, 8)
        served.shift = 1.0
        after = inspect(served, 16)
    assert said(after) == [
        ("quality", "constant", (), True),
        ("drift", "features", ("wind",), False),
        ("drift", "features spoiled by an incident", ("wind",), True),
    ]
    assert after[1].explained_by == ()
    assert decision(after[1]) == ("retrain", "go")


def test_drift_without_an_incident_still_triggers(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.shift = 1.0
        (alarm,) = inspect(served, 12)
        assert said([alarm]) == [("drift", "features", ("wind",), False)]
        assert decision(alarm) == ("retrain", "go")
        # an incident that began after the alarm explains it for as long as it stands, on all columns or on none
        assert decision(alarm, incidents={"wind": "it stands still"}) == ("skip", "explained")
        both = alarm.model_copy(update={"columns": ("hour", "wind")})
        assert decision(both, incidents={"wind": "it stands still"}) == ("skip", "broken_feed")


def test_a_loss_that_rose_with_a_broken_feed_waits_until_it_is_mended(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.shift = 1.0
        (drift,) = inspect(served, 12)
    loss = drift.model_copy(update={"monitor": "performance", "subject": "loss", "columns": ()})
    assert decision(loss) == ("retrain", "go")
    assert decision(loss, incidents={"wind": "it stands still"}) == ("skip", "broken_feed")
    by_hand = loss.model_copy(update={"monitor": "manual"})
    assert decision(by_hand, incidents={"wind": "it stands still"}) == ("retrain", "go")


def test_no_policy_can_make_an_incident_a_trigger() -> None:
    with pytest.raises(ValidationError):
        RetrainingPolicy(triggers=("quality",))  # type: ignore[arg-type]
    assert "quality" not in RetrainingPolicy().triggers


def test_a_run_killed_before_it_remembered_is_repeated_to_the_same_effect(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(5, requests=60)
        broken_wind(served, monkeypatch, None)
        served.serve(5, requests=60)
        first = watch_quality(MODEL)
        assert said(list(first.alarms)) == [("quality", "nulls", ("wind",), False)]
        rows = Table(served.store, results_table(MODEL)).read().num_rows
        state = served.store.find(f"monitoring/{MODEL}/state/quality.json")
        served.store.delete(f"monitoring/{MODEL}/state/quality.json")
        again = watch_quality(MODEL)
        assert again.alarms == ()
        assert served.store.find(f"monitoring/{MODEL}/state/quality.json") == state
        assert Table(served.store, results_table(MODEL)).read().num_rows == rows
        assert len(alarms_of(MODEL).all()) == 1
        assert watch_quality(MODEL).text.startswith("no cohort is due")


def test_vectors_of_another_length_requests_sent_twice_and_silence_are_named(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    as_before = served._row

    def row(asked: Any, i: int, *rest: Any) -> dict[str, Any]:
        made: dict[str, Any] = as_before(asked, i, *rest)
        if i < 10:
            return made | {"numeric": made["numeric"][:1]}
        return made | ({"prediction_id": "the same"} if i < 20 else {})

    with use_context(served.context()):
        assert inspect(served, 10) == []
        with monkeypatch.context() as patch:
            patch.setattr(served, "_row", row)
            assert {one.subject for one in inspect(served, 2)} == {"schema", "duplicates"}
        served.now += 2 * DAY
        found = watch_quality(MODEL)
    assert [(one.subject, one.recovered) for one in found.alarms if not one.recovered] == [("volume", False)]
    assert "0 rows; healthy cohorts had 60 to 60" in found.text


def test_a_view_gone_stale_and_values_beyond_its_range_are_named(served: ServedModel) -> None:
    weather = FeatureView(
        "weather",
        [Entity("airport")],
        [Field("wind", Float64)],
        expectations=[InRange("wind", least=-1.0), Freshness(2 * DAY)],
    )
    features = FeatureStore(served.store, clock=served.clock)
    features.apply([weather, FeatureService("late", [weather])])
    served.register(tags={"feature_service": "late"})
    monitor, drift = QualityMonitor(), DriftMonitor()
    with use_context(served.context()):
        served.serve(2, requests=60)
        features.write_offline(weather, [{"airport": "JFK", "wind": 1.0, "event_timestamp": served.now}])
        found = watch_quality(MODEL, monitor)
        assert said(list(found.alarms)) == [("quality", "ranges", ("wind",), False)]
        served.serve(3, requests=60)
        found = watch_quality(MODEL, monitor)
        assert said(list(found.alarms)) == [("quality", "freshness", ("wind",), False)]
        assert "view weather: the newest row is 3 days, 0:00:00 old; at most 2 days" in found.text
        assert watch_drift(MODEL, drift, monitor).alarms == ()


def test_a_view_without_a_row_is_stale(served: ServedModel) -> None:
    weather = FeatureView(
        "weather", [Entity("airport")], [Field("wind", Float64)], expectations=[Freshness(2 * DAY)]
    )
    FeatureStore(served.store, clock=served.clock).apply([weather, FeatureService("late", [weather])])
    served.register(tags={"feature_service": "late"})
    with use_context(served.context()):
        served.serve(2, requests=60)
        found = watch_quality(MODEL, QualityMonitor())
    assert ("quality", "freshness", ("wind",), False) in said(list(found.alarms))
    assert "view weather: it has no row" in found.text


def test_no_champion_is_an_answer(served: ServedModel) -> None:
    with use_context(served.context()):
        assert watch_quality(MODEL).text == "no champion serves this model"
