"""Views over a stream, refreshed from what its consumers stored bit by bit: as if computed from all events at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.events import MINUTE, START, clicks, event, messages, user
from tests.seeds import seeds
from toque.featurestore import Aggregation, FeatureStore, FeatureView, Field, Float64, Windows, last_k
from toque.featurestore.streams import StreamTable
from toque.featurestore.streams.decode import Place, decode
from toque.featurestore.streams.table import Move

HOUR = timedelta(hours=1)


def views(every: timedelta | None) -> list[FeatureView]:
    source = clicks(unique=["id"])
    aggregated = [
        Aggregation("count", HOUR),
        *(Aggregation(each, HOUR, "amount") for each in ("sum", "mean", "min", "max", "std")),
        Aggregation("approx_distinct", 3 * HOUR, "id"),
        *last_k("amount", 2, windows=[2 * HOUR]),
    ]
    return [
        FeatureView("spent", [user], source=Windows(aggregated, every=every), events=source),
        FeatureView("last", [user], [Field("amount", Float64)], events=source),
    ]


def history(chance: random.Random, count: int) -> list[dict[str, object]]:
    """Clicks of three users over three hours, some sent again, some corrected."""
    events = []
    for number in range(count):
        at = START + timedelta(seconds=chance.randrange(3 * 3600))
        one = event(
            f"u{chance.randrange(3)}", chance.choice([1, 2.5, 0.1, 70]), at=at.isoformat(), number=number
        )
        events.append(one)
        if chance.random() < 0.3:
            again = chance.choice(events)
            events.append(chance.choice([again, again | {"amount": 5.0}, again | {"user": "u9"}]))
    return events


def store_events(table: StreamTable, events: list[dict[str, object]], first: int, now: datetime) -> None:
    place: Place | None = table.places([0])[0]
    found = decode(table.source, messages(0, first, events, at=START + 4 * HOUR), {0: place})
    table.commit(found.events, found.rejected, {0: Move(place, found.places[0])})


@pytest.mark.parametrize("every", [None, 20 * MINUTE])
@pytest.mark.parametrize("seed", seeds(2, of=4))
def test_refreshed_bit_by_bit_rows_are_those_of_all_events_at_once(
    make_store: Callable[..., FeatureStore],
    clock: SettableClock,
    seed: int,
    every: timedelta | None,
) -> None:
    chance = random.Random(seed)
    events = history(chance, 60)
    clock.now = START + timedelta(days=1)
    store = make_store()
    store.apply(views(every))
    table, at = store.stream_table("clicks"), 0
    while at < len(events):
        end = at + chance.randrange(1, 25)
        store_events(table, events[at:end], at, clock.now)
        at = end
        assert store.refresh_view("last").rows > 0
        assert store.refresh_view("last").rows == 0
        if chance.random() < 0.7:
            store.refresh_view("spent")
    store.refresh_view("spent")
    asked = pa.table(
        {
            "user": [f"u{chance.choice([0, 1, 2, 9])}" for _ in range(100)],
            "event_timestamp": [
                START + 4 * HOUR + timedelta(seconds=chance.randrange(100)) for _ in range(60)
            ]
            + [START + timedelta(seconds=chance.randrange(8 * 3600)) for _ in range(40)],
        }
    )
    found = [
        store.get_historical_features(asked, store.get_feature_view(each)).to_arrow()
        for each in ("spent", "last")
    ]
    other = make_store()
    again = FeatureStore(other._store, project="again", clock=clock)
    again.apply(views(every))
    store_events(again.stream_table("clicks"), events, 0, clock.now)
    for view, given in zip(("spent", "last"), found, strict=True):
        again.refresh_view(view)
        expected = again.get_historical_features(asked, again.get_feature_view(view)).to_arrow()
        assert given.equals(expected)
    assert found[0].column("count_1h").null_count < 100
