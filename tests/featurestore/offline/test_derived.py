"""Derived views: refreshed bit by bit they have, at any moment and of any knowledge, what the inputs had."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tests.conditions.clocks import FAR_SKEWS, SKEWS
from tests.seeds import seeds
from toque.featurestore import (
    Derived,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    IncompatibleChange,
    Int64,
    InvalidDefinition,
    InvalidRows,
    UnknownDefinition,
)
from toque.featurestore.applied import deserialize
from toque.registry import open_store

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
plane = Entity("plane", dtype=Int64)
wear = FeatureView("wear", [plane], [Field("x", Float64)], ttl=6 * HOUR)
load = FeatureView("load", [plane], [Field("x", Float64), Field("unused", Float64)])


def total_of(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(total=pl.col("x").fill_null(-1) * 1000 + pl.col("load__x").fill_null(-1))


def twice_of(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(twice=pl.col("total") * 2 + pl.col("load__x").fill_null(0.5))


total = FeatureView(
    "total",
    [plane],
    source=Derived([wear, load[["x"]].with_name("load")], [Field("total", Float64)], total_of),
)
twice = FeatureView(
    "twice",
    [plane],
    source=Derived([total, load[["x"]].with_name("load")], [Field("twice", Float64)], twice_of),
)
Row = dict[str, Any]


def store_of(folder: Path, clock: Any = lambda: START) -> FeatureStore:
    made = FeatureStore(open_store(f"file://{folder}/store"), clock=clock)
    made.apply([wear, load, total, twice])
    return made


def history(chance: random.Random) -> dict[str, list[Row]]:
    """Rows of both inputs over two days, in the order in which they became known; one in four very late, some corrected."""
    rows: dict[str, list[Row]] = {"wear": [], "load": []}
    for number in range(30):
        event = START + chance.randrange(48) * HOUR
        late = chance.choice([0, 0, 0, 1, 20]) * HOUR
        row = {"plane": chance.randrange(2), "x": float(number), "event_timestamp": event}
        row["created_timestamp"] = event + late
        rows[chance.choice(["wear", "load"])].append(row)
    return {name: sorted(found, key=lambda row: row["created_timestamp"]) for name, found in rows.items()}


def latest(rows: list[Row], key: int, moment: datetime, known: datetime, ttl: timedelta | None) -> Row | None:
    """The definition in words: of the rows of a key that were known, the last one up to the moment, if it is young enough."""
    seen = [
        (row["event_timestamp"], row["created_timestamp"], number, row)
        for number, row in enumerate(rows)
        if row["plane"] == key and row["event_timestamp"] <= moment and row["created_timestamp"] <= known
    ]
    found = max(seen, default=None, key=lambda each: each[:2])
    return None if found is None or (ttl is not None and moment - found[0] > ttl) else found[3]


def expected(rows: dict[str, list[Row]], key: int, moment: datetime, known: datetime) -> tuple[Any, Any]:
    """Total and its double at the last moment that any input changed, as known then."""
    events = [
        row["event_timestamp"]
        for each in rows.values()
        for row in each
        if row["plane"] == key and row["event_timestamp"] <= moment and row["created_timestamp"] <= known
    ]
    if not events:
        return None, None
    at = max(events)
    worn, loaded = latest(rows["wear"], key, at, known, wear.ttl), latest(rows["load"], key, at, known, None)
    summed = (-1 if worn is None else worn["x"]) * 1000 + (-1 if loaded is None else loaded["x"])
    return summed, summed * 2 + (0.5 if loaded is None else loaded["x"])


def write(store: FeatureStore, view: FeatureView, rows: list[Row]) -> None:
    store.write_offline(view, [row | ({"unused": None} if view is load else {}) for row in rows])


@pytest.mark.parametrize("seed", seeds(4, of=12))
def test_refreshed_at_any_moments_it_has_what_the_inputs_had(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows, store = history(chance), store_of(tmp_path)
    distinct = {name: _no_ties(found) for name, found in rows.items()}
    cuts = sorted(START + chance.randrange(72) * HOUR for _ in range(3))
    for since, until in zip([START - HOUR, *cuts], [*cuts, START + 99 * HOUR], strict=True):
        for view in (wear, load):
            part = [r for r in distinct[view.name] if since < r["created_timestamp"] <= until]
            if part:
                write(store, view, part)
        if chance.random() < 0.3:
            store.offline_table(wear).exists() and store.offline_table(wear).open().optimize.compact()
        for view in (total, twice):
            store.refresh_view(view)
            assert store.refresh_view(view).rows == 0
    moments = [START + n * HOUR for n in range(0, 75, 3)]
    asked = pa.table({"plane": [0] * len(moments) + [1] * len(moments), "event_timestamp": moments * 2})
    for as_known in (False, True):
        found = store.get_historical_features(asked, ["total:total", "twice:twice"], as_known=as_known)
        for row in found.to_arrow().to_pylist():
            known = row["event_timestamp"] if as_known else START + 999 * HOUR
            wanted = expected(distinct, row["plane"], row["event_timestamp"], known)
            assert (row["total"], row["twice"]) == wanted, (seed, as_known, row)


def _no_ties(rows: list[Row]) -> list[Row]:
    """Leave of rows alike in key and both times the first; which of them counts is decided by their bytes."""
    seen = {(row["plane"], row["event_timestamp"], row["created_timestamp"]): row for row in reversed(rows)}
    return sorted(seen.values(), key=lambda row: row["created_timestamp"])


def test_a_row_that_comes_in_after_others_known_later_counts(tmp_path: Path) -> None:
    store = store_of(tmp_path, clock=lambda: START + 50 * HOUR)

    def row(x: float, event: int, created: int) -> Row:
        times = {"event_timestamp": START + event * HOUR, "created_timestamp": START + created * HOUR}
        return {"plane": 0, "x": x} | times

    write(store, wear, [row(1, 5, 9)])
    store.refresh_view(total)
    write(store, load, [row(7, 4, 4)])  # known before the row above, and written after it
    assert store.refresh_view(total).rows == 2
    asked = pa.table({"plane": [0, 0], "event_timestamp": [START + 4 * HOUR, START + 6 * HOUR]})
    found = store.get_historical_features(asked, ["total:total"]).to_arrow()
    assert found["total"].to_pylist() == [-1000.0 + 7, 1007.0]


@pytest.mark.parametrize("seed", seeds(4, of=12))
def test_in_whatever_order_and_by_whichever_clocks_the_last_row_to_be_known_counts(
    tmp_path: Path, seed: int
) -> None:
    """Rows are written in any order, also before they are known; the clock of each refresh is wrong by up to an hour."""
    chance = random.Random(seed)
    now = [START]
    rows, store = history(chance), store_of(tmp_path, clock=lambda: now[0])
    distinct = {name: _no_ties(found) for name, found in rows.items()}
    arrivals = [(view, row) for view in (wear, load) for row in distinct[view.name]]
    chance.shuffle(arrivals)
    for part in range(0, len(arrivals), 7):
        for view, row in arrivals[part : part + 7]:
            write(store, view, [row])
        now[0] = START + part * HOUR + chance.choice([*SKEWS.values(), *FAR_SKEWS.values()])
        for derived in (total, twice):
            store.refresh_view(derived)
    known_at = {
        (view.name, row["plane"], row["x"]): row["created_timestamp"]
        for view, found in ((wear, distinct["wear"]), (load, distinct["load"]))
        for row in found
    }
    moments = set()
    for row in store.offline.read(total).to_pylist():
        worn, loaded = divmod(row["total"] + 1, 1000)  # both are -1 where there is no row
        parts = [("wear", row["plane"], worn), ("load", row["plane"], loaded - 1)]
        assert all(known_at.get(part, START) <= row["created_timestamp"] for part in parts), (seed, row)
        moments.add((row["plane"], row["event_timestamp"], row["created_timestamp"]))
    assert len(moments) == store.offline.read(total).num_rows  # each is later than the one that it replaces
    hours = [START + n * HOUR for n in range(0, 75, 3)]
    asked = pa.table({"plane": [0] * len(hours) + [1] * len(hours), "event_timestamp": hours * 2})
    found = store.get_historical_features(asked, ["total:total", "twice:twice"]).to_arrow().to_pylist()
    for row in found:
        wanted = expected(distinct, row["plane"], row["event_timestamp"], START + 999 * HOUR)
        assert (row["total"], row["twice"]) == wanted, (seed, row)


def test_a_correction_counts_though_a_later_state_of_the_other_input_is_stored_already(
    tmp_path: Path,
) -> None:
    now = [START + HOUR]
    store = store_of(tmp_path, clock=lambda: now[0])

    def refreshed(view: FeatureView, x: float, known: timedelta) -> None:
        row = {"plane": 0, "x": x, "event_timestamp": START, "created_timestamp": START + known}
        write(store, view, [row])
        store.refresh_view(total)

    refreshed(wear, 7, 4 * HOUR)  # published at noon, written at nine
    refreshed(load, 1, timedelta(0))
    refreshed(load, 2, HOUR)
    asked = pa.table({"plane": [0] * 3, "event_timestamp": [START + n * HOUR for n in (0, 2, 5)]})
    found = store.get_historical_features(asked, ["total:total"], as_known=True).to_arrow()
    assert found["total"].to_pylist() == [-999.0, -998.0, 7002.0]


def test_an_older_correction_that_comes_in_last_does_not_count(tmp_path: Path) -> None:
    store = store_of(tmp_path, clock=lambda: START + 50 * HOUR)
    for x, known in ((1.0, 1), (3.0, 3), (2.0, 2)):
        times = {"event_timestamp": START, "created_timestamp": START + known * HOUR}
        write(store, wear, [{"plane": 0, "x": x} | times])
        store.refresh_view(total)
    asked = pa.table({"plane": [0], "event_timestamp": [START + HOUR]})
    found = store.get_historical_features(asked, ["total:total", "wear:x"]).to_arrow()
    assert (found["total"][0].as_py(), found["x"][0].as_py()) == (2999.0, 3.0)


def test_a_derived_view_of_rows_alike_takes_the_one_that_a_read_takes(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for x in (2.0, 3.0, 1.0):
        write(store, wear, [{"plane": 0, "x": x, "event_timestamp": START, "created_timestamp": START}])
    store.refresh_view(total)
    asked = pa.table({"plane": [0], "event_timestamp": [START]})
    found = store.get_historical_features(asked, ["wear:x", "total:total"]).to_arrow()
    assert found["total"][0].as_py() == found["x"][0].as_py() * 1000 - 1


def test_it_is_applied_with_its_inputs_and_rebuilt(tmp_path: Path) -> None:
    store = FeatureStore(open_store(f"file://{tmp_path}/store"))
    store.apply([FeatureService("all", [twice])])
    assert {view.name for view in store.list_feature_views()} == {"wear", "load", "total", "twice"}
    rebuilt = deserialize.view(twice.describe())
    assert rebuilt.semantics() == twice.semantics()
    assert [each.view.name for each in rebuilt.inputs] == ["total", "load"]
    with pytest.raises(IncompatibleChange, match="'wear' is used by feature view 'total'"):
        store.apply([], remove=["feature_view/wear"])
    with pytest.raises(IncompatibleChange, match="'total' uses wear:x"):
        store.apply([FeatureView("wear", [plane], [Field("y", Float64)], ttl=6 * HOUR)])
    other = FeatureStore(
        open_store(f"file://{tmp_path}/store")
    )  # a process that finds the function by its module
    write(other, wear, [{"plane": 0, "x": 1.0, "event_timestamp": START, "created_timestamp": START}])
    assert [other.refresh_view(name).rows for name in ("total", "twice")] == [1, 1]
    with pytest.raises(UnknownDefinition, match="no source that computes from events"):
        store.compute_offline(total, [])


def test_what_cannot_be_derived_is_refused(tmp_path: Path) -> None:
    other = Entity("airport")
    with pytest.raises(InvalidDefinition, match="join keys differ"):
        FeatureView("bad", [other], source=Derived([wear], [Field("y", Float64)], total_of))
    with pytest.raises(InvalidDefinition, match="appears twice"):
        Derived([wear, load], [Field("y", Float64)], total_of)
    with pytest.raises(InvalidDefinition, match="needs views"):
        Derived([], [Field("y", Float64)], total_of)
    store = store_of(tmp_path)
    bad = FeatureView("bad", [plane], source=Derived([wear], [Field("y", Float64)], _bad))
    store.apply([bad])
    write(store, wear, [{"plane": 0, "x": 1.0, "event_timestamp": START, "created_timestamp": START}])
    with pytest.raises(InvalidRows, match="did not return 'y'"):
        store.refresh_view(bad)


def _bad(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def test_rows_that_are_stored_already_are_consumed_and_not_written_again(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    row = {"plane": 0, "x": 1.0, "event_timestamp": START, "created_timestamp": START}
    write(store, wear, [row])
    assert store.refresh_view(total).rows == 1
    write(store, wear, [row])  # the same again, as after a retry of who wrote it
    assert [store.refresh_view(total).rows for _ in range(2)] == [0, 0]
    assert store.offline.read(total).num_rows == 1
    assert store.offline.consumed(total, "view:wear") == store.offline_table(wear).version() + 1
