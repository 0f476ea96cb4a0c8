"""Views that take their rows or events from a batch source: refreshed bit by bit, they are as if computed at once."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from tests.seeds import seeds
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    InvalidDefinition,
    String,
    UnknownDefinition,
    Windows,
)
from toque.registry import open_store

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
plane = Entity("plane", dtype=String)


def no_secrets(name: str) -> str:
    raise AssertionError(name)


def source(folder: Path, *, known_at: str = "landed") -> BatchSource:
    return BatchSource(
        "flights",
        CsvFiles(f"{folder}/*.csv"),
        [Field("plane", String), Field("delay", Float64), Field("flight", String)],
        timestamp="departed",
        known_at=known_at,
        unique=["flight"],
    )


def windows_view(folder: Path, watermark: timedelta | None = None) -> FeatureView:
    aggregations = [Aggregation("mean", 6 * HOUR, "delay"), Aggregation("count", 24 * HOUR)]
    return FeatureView(
        "recent",
        [plane],
        source=Windows(aggregations, every=HOUR, watermark=watermark),
        events=source(folder),
    )


def features(folder: Path) -> FeatureStore:
    times = itertools.count()
    return FeatureStore(
        open_store(f"file://{folder}/store"), clock=lambda: START + timedelta(days=30, seconds=next(times))
    )


def history(chance: random.Random) -> list[dict[str, object]]:
    """Flights of three planes over four days; one in five lands very late, one in six is corrected afterwards."""
    rows = []
    for number in range(60):
        departed = START + timedelta(minutes=chance.randrange(4 * 24 * 60))
        late = timedelta(hours=chance.choice([1, 1, 1, 2, 30]))
        row = {
            "flight": f"F{number}",
            "plane": f"N{chance.randrange(3)}",
            "departed": departed,
            "landed": departed + late,
        }
        rows.append(row | {"delay": chance.randrange(100)})
        if chance.random() < 1 / 6:
            rows.append(row | {"delay": chance.randrange(100)})
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    columns = ["flight", "plane", "departed", "landed", "delay"]
    lines = [
        ",".join(
            each.isoformat() if isinstance(each, datetime) else str(each) for each in map(row.get, columns)
        )
        for row in rows
    ]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")


def asked(chance: random.Random) -> pa.Table:
    times = [START + timedelta(minutes=chance.randrange(5 * 24 * 60)) for _ in range(80)]
    return pa.table({"plane": [f"N{chance.randrange(3)}" for _ in times], "event_timestamp": times})


@pytest.mark.parametrize("seed", seeds(4, of=12))
def test_windows_refreshed_load_by_load_are_those_of_all_events_at_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows = history(chance)
    questions, found = asked(chance), []
    for loads in (1, 5):
        folder = tmp_path / str(loads)
        folder.mkdir()
        store, view = features(folder), windows_view(folder, watermark=timedelta(hours=40))
        store.apply([view])
        cuts = [len(rows) * n // loads for n in range(loads + 1)]
        for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
            write(folder / f"{number}.csv", rows[begin:end])
            assert store.source_table("flights").load(no_secrets) is not None
            assert store.refresh_view(view).load == number + 1
            assert store.refresh_view(view).rows == 0
        found.append(store.get_historical_features(questions, features=view).to_arrow())
    assert found[0].equals(found[1])
    assert found[0]["delay_mean_6h"].null_count < 80


def changed(row: dict[str, object], number: int, chance: random.Random) -> dict[str, object]:
    """Correct a flight: its delay, and the plane that flew it or when it landed."""
    landed = START + timedelta(minutes=chance.randrange(6 * 24 * 60))
    others: list[dict[str, object]] = [{}, {"plane": f"N{chance.randrange(3)}"}, {"landed": landed}]
    return row | chance.choice(others) | {"delay": 1000 + number}


@pytest.mark.parametrize("every", [None, HOUR])
@pytest.mark.parametrize("seed", seeds(2, of=5))
def test_rows_of_late_and_of_corrected_events_are_those_of_all_events_at_once(
    tmp_path: Path, seed: int, every: timedelta | None
) -> None:
    chance = random.Random(seed)
    rows = history(chance)
    rows += [changed(each, number, chance) for number, each in enumerate(chance.sample(rows, 20))]
    questions, found = asked(chance), []
    for loads in (1, 6):
        folder = tmp_path / str(loads)
        folder.mkdir()
        aggregations = [Aggregation("mean", 6 * HOUR, "delay"), Aggregation("count", 12 * HOUR)]
        view = FeatureView(
            "recent", [plane], source=Windows(aggregations, every=every), events=source(folder)
        )
        store = features(folder)
        store.apply([view])
        cuts = [len(rows) * n // loads for n in range(loads + 1)]
        for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
            write(folder / f"{number}.csv", rows[begin:end])
            store.source_table("flights").load(no_secrets)
            store.refresh_view(view)
        found.append(store.get_historical_features(questions, features=view).to_arrow())
    assert found[1].to_pylist() == found[0].to_pylist()


def test_an_event_that_became_known_after_its_windows_has_a_row(tmp_path: Path) -> None:
    store = features(tmp_path)
    view = FeatureView(
        "recent", [plane], source=Windows([Aggregation("count", 2 * HOUR)]), events=source(tmp_path)
    )
    store.apply([view])
    one = {"plane": "N1", "delay": 1}
    first = one | {"flight": "F1", "departed": START, "landed": START + HOUR}
    late = one | {"flight": "F2", "departed": START, "landed": START + 5 * HOUR}
    for number, row in enumerate([first, late]):
        write(tmp_path / f"{number}.csv", [row])
        store.source_table("flights").load(no_secrets)
        store.refresh_view(view)
    questions = pa.table({"plane": ["N1", "N1"], "event_timestamp": [START + 2 * HOUR, START + 6 * HOUR]})
    assert store.get_historical_features(questions, features=view).to_arrow()["count_2h"].to_pylist() == [
        1,
        0,
    ]


def test_a_corrected_key_takes_its_event_from_the_rows_of_the_other(tmp_path: Path) -> None:
    store, view = features(tmp_path), windows_view(tmp_path)
    store.apply([view])
    wrong = {"flight": "F1", "plane": "N1", "departed": START, "landed": START + HOUR, "delay": 1}
    for number, row in enumerate([wrong, wrong | {"plane": "N2"}]):
        write(tmp_path / f"{number}.csv", [row])
        store.source_table("flights").load(no_secrets)
        store.refresh_view(view)
    questions = pa.table({"plane": ["N1", "N2"], "event_timestamp": [START + 2 * HOUR] * 2})
    found = store.get_historical_features(questions, features=view).to_arrow()
    assert found["count_1d"].to_pylist() == [0, 1]


def test_a_view_without_a_transformation_has_the_rows_of_its_source(tmp_path: Path) -> None:
    store = features(tmp_path)
    view = FeatureView("flown", [plane], [Field("delay", Float64)], events=source(tmp_path))
    store.apply([view])
    (early, late) = [
        {
            "flight": f"F{n}",
            "plane": f"N{n}",
            "departed": START + n * HOUR,
            "landed": START + 5 * HOUR,
            "delay": n,
        }
        for n in (1, 2)
    ]
    write(tmp_path / "a.csv", [early, late])
    assert store.refresh_view("flown").rows == 0  # nothing was loaded yet
    assert store.source_table("flights").load(no_secrets) is not None
    assert store.refresh_view("flown").rows == 2
    assert store.offline.read(view).column("created_timestamp").to_pylist() == [START + 5 * HOUR] * 2
    write(tmp_path / "b.csv", [late | {"delay": 20}])
    assert store.source_table("flights").load(no_secrets) is not None
    assert store.refresh_view("flown").rows == 1
    questions = pa.table({"plane": ["N1", "N2"], "event_timestamp": [START + 6 * HOUR] * 2})
    assert store.get_historical_features(questions, features=view).to_arrow()["delay"].to_pylist() == [1, 20]
    assert store.get_feature_view("flown") == view


def test_a_view_names_what_its_source_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidDefinition, match=r"column 'seats' \(Float64\) comes from batch source 'flights'"
    ):
        FeatureView("flown", [plane], [Field("seats", Float64)], events=source(tmp_path))
    store = features(tmp_path)
    view = FeatureView("alone", [plane], [Field("delay", Float64)])
    store.apply([view])
    with pytest.raises(UnknownDefinition, match="has no batch source"):
        store.refresh_view(view)
    with pytest.raises(UnknownDefinition, match="no batch source 'flights' is applied"):
        store.source_table("flights")


def test_a_source_is_not_removed_while_a_view_uses_it(tmp_path: Path) -> None:
    store = features(tmp_path)
    store.apply([windows_view(tmp_path)])
    assert store.list_batch_sources() == ["flights"]
    assert store.get_batch_source("flights") == source(tmp_path)
    with pytest.raises(ValueError, match="batch source 'flights' is used by feature view 'recent'"):
        store.apply([], remove=["batch_source/flights"])
