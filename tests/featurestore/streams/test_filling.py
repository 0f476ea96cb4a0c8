"""Views filled from all stored events of a stream: however many are held at once, the rows are the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.featurestore.streams.checks import views
from tests.featurestore.streams.events import START
from tests.memory import own_memory
from toque.featurestore import FeatureStore
from toque.featurestore.rows import conform
from toque.featurestore.stream_views import fill_views
from toque.featurestore.streams import replay
from toque.featurestore.streams.decode import Place, event_schema, rejected_schema
from toque.featurestore.streams.refresh import new_rows
from toque.featurestore.streams.table import Move, StreamTable
from toque.registry import open_store

COMMITTED = 20_000


def fill_stream(store: FeatureStore, events: int, *, users: int) -> StreamTable:
    """Store so many events of a stream, two thirds of which are corrections."""
    store.apply(views(None, None))
    table = store.stream_table("clicks")
    begin = int(START.timestamp() * 1e6)
    (place,) = table.places([0]).values()
    for first in range(0, events, COMMITTED):
        numbers = np.arange(first, min(first + COMMITTED, events))
        known = begin + numbers * 1_000_000
        columns = {
            "event_timestamp": pa.array(known - known % 3_000_000, pa.timestamp("us", "UTC")),
            "known_at": pa.array(known, pa.timestamp("us", "UTC")),
            "user": [f"u{number}" for number in (numbers * 7919) % users],
            "amount": numbers % 997 / 7,
            "id": [f"e{number}" for number in numbers // 3],
            "stream_partition": pa.array([0] * len(numbers), pa.int32()),
            "stream_position": numbers,
        }
        schema = event_schema(table.source)
        rows = pa.table(
            [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
        )
        after = Place(int(numbers[-1]) + 1, int(known[-1]), int(known[-1]))
        table.commit(rows, rejected_schema().empty_table(), {0: Move(place, after)})
        place = after
    return table


@pytest.mark.parametrize("at_once", [500, 1_000_000])
def test_rows_are_the_same_however_many_events_are_held(
    at_once: int, make_store: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "EVENTS_AT_ONCE", at_once)
    monkeypatch.setattr(replay, "PIECE_ROWS", at_once)
    store = make_store()
    table = fill_stream(store, 5_000, users=40)
    fill_views(store, table)
    for view in store.list_feature_views():
        whole = new_rows(view, table, {})
        assert whole is not None
        names = [key.name for key in view.join_keys] + ["event_timestamp", *view.features]
        expected = pl.DataFrame(conform(view, whole.rows, clock=store.now)).sort(names)
        found = pl.DataFrame(store.offline.read(view)).select(expected.columns).sort(names)
        assert found.equals(expected)


EVENTS = 400_000


def made(folder: str) -> None:
    """Store the events that are filled from, and a few that come before them."""
    for name, events, users in (("few", 5_000, 40), ("many", EVENTS, 5_000)):
        fill_stream(FeatureStore(open_store(f"file://{folder}/{name}")), events, users=users)


def held(folder: str, *, in_parts: bool) -> int:
    """Bytes that the rows of all events take at most: 10,000 events at once, or all.

    Those of a few events come first, uncounted: what is loaded once is not held for events.
    """
    replay.EVENTS_AT_ONCE = replay.PIECE_ROWS = 10_000
    for name in ("few", "many"):
        store = FeatureStore(open_store(f"file://{folder}/{name}"))
        table = store.stream_table("clicks")
        with own_memory() as memory:
            if in_parts:
                fill_views(store, table)
            else:
                rows = [new_rows(view, table, {}) for view in store.list_feature_views()]
                assert all(each is not None for each in rows)
    return max(memory)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_more_is_held_than_some_of_the_events(tmp_path: Path) -> None:
    """Each in a process of its own: what the one leaves free would not count for the other."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        pool.submit(made, str(tmp_path)).result()
        whole = pool.submit(held, str(tmp_path), in_parts=False).result()
        in_parts = pool.submit(held, str(tmp_path), in_parts=True).result()
    assert in_parts < whole / 2, (in_parts, whole)  # a quarter, as measured
