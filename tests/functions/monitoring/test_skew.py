"""Served as learnt, and as the offline store has it."""

from __future__ import annotations

import json
from datetime import timedelta

import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import DAY, MODEL, START, ServedModel
from toque.featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, Float64
from toque.functions.monitoring import SkewMonitor, standing_alarms, watch_skew
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.runtime import use_context
from toque.registry import Table

HOUR = timedelta(hours=1)
MONITOR = SkewMonitor(hours=24, delay=timedelta(0), sample=0)


def test_a_version_that_is_served_as_it_learnt_says_nothing_and_is_looked_at_once(
    served: ServedModel,
) -> None:
    served.register()
    with use_context(served.context()):
        served.serve()
        seen = watch_skew(MODEL, MONITOR)
        assert (seen.cohorts, seen.text) == (1, "served as learnt")
        assert watch_skew(MODEL, MONITOR).text == "nothing new to look at"
        assert standing_alarms(MODEL) == []


def test_a_feature_that_is_served_otherwise_is_an_incident_until_it_is_well(served: ServedModel) -> None:
    served.register()
    served.shift = 4.0  # no day is so far from the training set: the feature is computed otherwise
    with use_context(served.context()):
        served.serve()
        (alarm,) = watch_skew(MODEL, MONITOR).alarms
        assert (alarm.monitor, alarm.subject, alarm.columns) == (
            "quality",
            "skew in the first hours",
            ("wind",),
        )
        served.serve()
        assert watch_skew(MODEL, MONITOR).alarms == ()  # told, and not over
        served.shift = 0.0
        served.serve(2)
        (over,) = watch_skew(MODEL, MONITOR).alarms
        assert (over.recovered, over.columns) == (True, ("wind",))
        assert standing_alarms(MODEL) == []


def test_too_few_answers_are_waited_for(served: ServedModel) -> None:
    served.register()
    served.shift = 4.0
    with use_context(served.context()):
        served.serve(requests=20)
        assert watch_skew(MODEL, MONITOR).text == "nothing new to look at"
        served.serve(requests=40)
        assert len(watch_skew(MODEL, MONITOR).alarms) == 1


def test_a_run_that_was_killed_before_it_remembered_tells_nothing_twice(served: ServedModel) -> None:
    served.register()
    served.shift = 4.0
    with use_context(served.context()):
        served.serve()
        kept = served.store.find(f"monitoring/{MODEL}/state/skew.json")
        assert kept is None
        watch_skew(MODEL, MONITOR)
        served.store.delete(f"monitoring/{MODEL}/state/skew.json")
        watch_skew(MODEL, MONITOR)
        assert len(standing_alarms(MODEL)) == 1


PLACE = FeatureView("weather", [Entity("place")], [Field("wind", Float64)])


@pytest.mark.parametrize("wrong", [False, True])
def test_what_was_logged_is_recomputed_from_the_offline_store(served: ServedModel, wrong: bool) -> None:  # noqa: FBT001
    used = served.context()
    features = FeatureStore(used.store, clock=served.clock, actor="ada")
    features.apply([PLACE, FeatureService("late", [PLACE])])
    served.register(tags={"feature_service": "late"})
    at = [START + i * timedelta(minutes=10) for i in range(60)]
    features.write_offline(
        PLACE,
        pa.table(
            {
                "place": [f"p{i}" for i in range(60)],
                "wind": [float(i) for i in range(60)],
                "event_timestamp": pa.array([START - HOUR] * 60, pa.timestamp("us", "UTC")),
            }
        ),
    )
    rows = [
        {
            "prediction_id": f"r{i}", "model": MODEL, "version": 1, "arm": "champion", "shadow": False,
            "predicted_at": at[i], "day": f"{at[i]:%Y-%m-%d}", "outputs": [0.5], "categorical": ["AA"],
            "numeric": [float(i) + (1.0 if wrong and i % 3 == 0 else 0.0), 1.0],
            "entities": json.dumps({"place": f"p{i}" if i != 7 else "nowhere"}),
            "missing": ["wind"] if i == 7 else None,
        }
        for i in range(60)
    ]  # fmt: skip
    Table(used.store, predictions_table(MODEL)).append(
        pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"]
    )
    served.now = START + DAY
    with use_context(used):
        seen = watch_skew(MODEL, SkewMonitor(hours=24, delay=timedelta(0), min_rows=1_000))
    if not wrong:
        assert (seen.text, seen.alarms) == ("60 rows are as recomputed", ())
        return
    (alarm,) = seen.alarms
    assert (alarm.subject, alarm.columns) == ("skew against the offline store", ("wind",))
    assert alarm.text == "wind: 33.3% of 60 rows differ"
