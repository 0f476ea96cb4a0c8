"""The weather feed of the flights breaks, as feeds do: the incident has the right name the same day, and nothing is retrained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from examples.flights import data
from examples.flights.features import HOUR, WEATHER
from examples.flights.model import delay_model
from toque.functions.monitoring import Alarm, DriftMonitor, alarms
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.retraining import jobs as module
from toque.functions.retraining.jobs import inspect_model, retrain, retrains
from toque.functions.runtime.context import Context, use_context
from toque.registry import Lineage, Signature, Table, TensorSpec, open_store

MODEL, DAY = delay_model.name, timedelta(days=1)
TRAINED_FROM, SERVED_FROM = datetime(2013, 1, 2, tzinfo=UTC), datetime(2013, 2, 20, tzinfo=UTC)
BREAKS = SERVED_FROM + 10 * DAY
ONE_IN = 6
Break = Callable[[pl.DataFrame], pl.DataFrame]

BROKEN: dict[str, tuple[Break, set[str]]] = {
    "constant": (lambda rows: rows.with_columns(temp=pl.lit(41.0)), {"temp"}),
    "nulls": (lambda rows: rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in WEATHER), {*WEATHER} - {"wind_gust"}),
    "unit": (lambda rows: rows.with_columns((pl.col("temp", "dewp") - 32) / 1.8), {"temp", "dewp"}),
}  # fmt: skip


class Clock:
    now = SERVED_FROM

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def flights_with_weather() -> pl.DataFrame:
    """One flight in six with the weather that was published an hour before it should leave."""
    flights = data.flights().select(
        "flight_id", "origin", event_timestamp=pl.col("scheduled_departure") - HOUR
    )
    weather = data.weather().with_columns(event_timestamp=pl.col("observed_hour") + HOUR)
    flights = flights.filter(
        (pl.col("flight_id") % ONE_IN == 0)
        & pl.col("event_timestamp").is_between(TRAINED_FROM, BREAKS + 20 * DAY)
    )
    return flights.sort("event_timestamp").join_asof(
        weather.sort("event_timestamp"),
        on="event_timestamp",
        by="origin",
        tolerance="3h",
        check_sortedness=False,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ctx(
    tmp_path: Path, clock: Clock, flights_with_weather: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> Context:
    """A champion that reads the weather, its training set, and the flights' own monitors and policy."""
    project = ModuleType("weather_project")
    # Gusts are reported when there are any: how many are missing drifts by itself in spring, and rightly so.
    steady = DriftMonitor(columns=tuple(name for name in WEATHER if name != "wind_gust"))
    monitors = [one for one in delay_model.monitors if one.kind != "drift"]
    definition = delay_model.model_copy(
        update={"numeric": WEATHER, "categorical": (), "monitors": (*monitors, steady)}
    )
    project.FEATURES, project.MODELS = [], [definition]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "weather_project", project)
    url = f"file://{tmp_path}/store"
    used = Context(open_store(url), url, project="weather_project", clock=clock, actor="inspector")
    seen = flights_with_weather.filter(pl.col("event_timestamp") < SERVED_FROM).select(
        "event_timestamp", *WEATHER
    )
    snapshot = Table(used.store, "training/weather").overwrite(seen.to_arrow())
    file, registry = tmp_path / "model.txt", used.registry()
    file.write_text("it reads the weather")
    registry.create_model(MODEL)
    made = registry.create_version(
        MODEL,
        file,
        signature=Signature(
            inputs=[
                TensorSpec(name="numeric", datatype="FP32", shape=[-1, len(WEATHER)], columns=list(WEATHER))
            ],
            outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
        ),
        lineage=Lineage(datasets=[snapshot]),
    )
    registry.set_alias(MODEL, "champion", made.version)
    return used


def serve(ctx: Context, rows: pl.DataFrame) -> None:
    count = rows.height
    columns = {
        "prediction_id": rows["flight_id"].cast(pl.String).to_list(),
        "model": [MODEL] * count,
        "version": [1] * count,
        "arm": ["champion"] * count,
        "shadow": [False] * count,
        "unit": rows["flight_id"].cast(pl.String).to_list(),
        "predicted_at": rows["event_timestamp"].to_list(),
        "latency_ms": [1.0] * count,
        "numeric": list(rows.select(WEATHER).fill_null(np.nan).to_numpy().astype(np.float32)),
        "categorical": [[]] * count,
        "outputs": [[0.2]] * count,
        "missing": [None] * count,
        "entities": [None] * count,
        "day": rows["event_timestamp"].dt.strftime("%Y-%m-%d").to_list(),
    }
    Table(ctx.store, predictions_table(MODEL)).append(
        pa.table(columns, schema=PREDICTIONS), partition_by=["day"]
    )


def serve_and_inspect(
    ctx: Context, clock: Clock, flights_with_weather: pl.DataFrame, days: int, broken: Break
) -> list[Alarm]:
    """Serve and inspect day by day; the alarms that the inspections raised."""
    raised: list[Alarm] = []
    for _ in range(days):
        rows = flights_with_weather.filter(
            pl.col("event_timestamp").is_between(clock.now, clock.now + DAY, closed="left")
        )
        serve(ctx, broken(rows))
        clock.now += DAY
        now, clock.now = clock.now, clock.now + 2 * HOUR
        raised += [one for watched in inspect_model(MODEL).watched for one in watched.alarms]
        clock.now = now
    return raised


def risen_loss(clock: Clock) -> Alarm:
    return Alarm(
        key="loss",
        model=MODEL,
        monitor="performance",
        subject="loss",
        version=1,
        raised_at=clock.now,
        start=clock.now - DAY,
        end=clock.now,
        text="the loss rose",
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_weather_feed_is_named_within_a_day_and_retrains_nothing(
    ctx: Context,
    clock: Clock,
    flights_with_weather: pl.DataFrame,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(module, "train_challengers", lambda *order: trained.append(order))
    broken, columns = BROKEN[fault]
    with use_context(ctx):
        assert serve_and_inspect(ctx, clock, flights_with_weather, 10, lambda rows: rows) == []
        first = serve_and_inspect(ctx, clock, flights_with_weather, 1, broken)
        assert [(one.monitor, one.subject, set(one.columns)) for one in first] == [
            ("quality", fault, columns)
        ]
        if fault == "unit":
            assert "temp: unit changed (F to C)" in first[0].text
        later = serve_and_inspect(ctx, clock, flights_with_weather, 9, broken)
        # On a mild day the dew point in C lies where it lay in F, and that column alone counts as well again.
        assert all(one.subject == fault or set(one.explained_by) == {first[0].key} for one in later)
        answer = retrain(
            risen_loss(clock)
        )  # what such a feed does to the loss is nothing to learn from either
        assert (answer.action, answer.rule) == ("skip", "broken_feed")
        (standing,) = [one for one in alarms(MODEL).standing() if one.monitor == "quality"]
        assert standing.text in answer.text
        assert serve_and_inspect(ctx, clock, flights_with_weather, 1, lambda rows: rows)[0].recovered
        said = [one for one in alarms(MODEL).all() if one.monitor == "quality"]
        decided = [entry.body["event"] for entry in retrains(MODEL).journal.entries()]
    assert {one.subject for one in said} == {fault}
    assert said[-1].recovered
    assert trained == []
    assert decided == ["skipped"]
