"""Decoding of messages: what does not fit is told apart one by one, and the same in whatever batches messages come."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from tests.featurestore.streams.events import MINUTE, START, clicks, event, messages
from toque.featurestore import Bool, Field, Float32, Float64, Int64, String, UnixTimestamp
from toque.featurestore.definitions.stream_source import Messages
from toque.featurestore.streams.decode import Place, decode

NOW = START + timedelta(hours=2)

POISON: list[tuple[Any, str]] = [
    (b"{", "the message is not a JSON object"),
    (b"[1]", "the message is not a JSON object"),
    (None, "the message is not a JSON object"),
    (b"\xff\xfe", "the message is not a JSON object"),
    (event(amount="late"), "column 'amount' is not Float64"),
    (event(amount=True), "column 'amount' is not Float64"),
    (event(amount={"a": 1}), "column 'amount' is not Float64"),
    (event(amount=2_000), "column 'amount' is outside [0, 1000]"),
    (event(name=7), "column 'user' is not String"),  # type: ignore[arg-type]
    (event(at="yesterday"), "column 'at' is not a time"),
    (event(at=1e30), "column 'at' is not a time"),
    (event(at=True), "column 'at' is not a time"),
    ({"user": "u1", "amount": 1.0}, "column 'at' has no value"),
    (
        event(at=(START + timedelta(days=1)).isoformat()),
        "column 'at' is after the time at which the log took it",
    ),
]


@pytest.mark.parametrize(("given", "reason"), POISON)
def test_a_poison_event_goes_aside_with_its_reason_and_the_rest_goes_on(given: Any, reason: str) -> None:
    found = decode(clicks(), messages(0, 5, [event("a"), given, event("b")]), {})
    assert found.events.column("user").to_pylist() == ["a", "b"]
    assert found.events.column("stream_position").to_pylist() == [5, 7]
    assert found.rejected.column("reason").to_pylist() == [reason]
    assert found.rejected.column("stream_position").to_pylist() == [6]
    assert found.places[0].position == 8


def test_times_are_texts_or_numbers_of_the_declared_unit() -> None:
    seconds = START.timestamp()
    given = [
        event(at="2024-05-01 02:00"),
        event(at=START.isoformat()),
        event(at=seconds * 1000),
        event(at=int(seconds * 1000) + 1),
    ]
    zone = clicks(timezone="Europe/Berlin")
    found = decode(zone, messages(0, 0, given), {}).events.column("event_timestamp").to_pylist()
    assert found == [START, START, START, START + timedelta(milliseconds=1)]
    (one,) = (
        decode(clicks(timestamp_unit="s"), messages(0, 0, [event(at=seconds)]), {})
        .events["event_timestamp"]
        .to_pylist()
    )
    assert one == START


def test_numbers_keep_their_bits_or_go_aside() -> None:
    fields = [
        Field("i", Int64),
        Field("f", Float32),
        Field("d", Float64),
        Field("b", Bool),
        Field("t", UnixTimestamp),
    ]
    source = clicks(schema=[Field("user", String), *fields], partitioned_by=[], expectations=[])
    good: dict[str, Any] = {
        "i": 3,
        "f": 1.5,
        "d": 0.1,
        "b": True,
        "t": "2024-05-01T00:00:00Z",
        "at": START.isoformat(),
    }
    bad = [{"i": 1.5}, {"i": "3"}, {"i": 2**63}, {"f": 1e300}, {"d": 2**60 + 1}, {"b": 1}, {"t": "x"}]
    found = decode(source, messages(0, 0, [good, *(good | each for each in bad), good | {"i": 3.0}]), {})
    (one, _) = found.events.select(["i", "f", "d", "b", "t"]).to_pylist()
    assert one == {"i": 3, "f": 1.5, "d": 0.1, "b": True, "t": START}
    assert [text.split("'")[1] for text in found.rejected.column("reason").to_pylist()] == list("iiifdbt")


def test_no_two_events_of_a_partition_become_known_at_one_time() -> None:
    given = Messages()
    for number, taken in enumerate([100, 100, 50, 100, 5_000]):
        given.add(0, number, taken, b"{}")
    source = clicks(timestamp="user", schema=[Field("user", String)], partitioned_by=[], expectations=[])
    rejected = decode(source, given, {0: Place(0, known_us=99)}).rejected
    known = [int(each.timestamp() * 1e6) for each in rejected.column("known_at").to_pylist()]
    assert known == [100, 101, 102, 103, 5_000]


def test_a_late_event_goes_aside() -> None:
    source = clicks(allowed_lateness=10 * MINUTE)
    times = [30, 25, 20, 19, 40, 29, 30]
    given = [event(at=(START + each * MINUTE).isoformat()) for each in times]
    found = decode(source, messages(0, 0, given), {})
    assert found.rejected.column("stream_position").to_pylist() == [3, 5]
    assert found.late == 2
    assert "more than 0:10:00 behind the watermark" in found.rejected.column("reason")[0].as_py()
    assert found.places[0].watermark_us == int((START + 40 * MINUTE).timestamp() * 1e6)


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(minutes=6), timedelta(days=9)])
def test_the_time_at_which_the_log_took_a_message_counts_whatever_the_readers_clock_says(
    ahead: timedelta,
) -> None:
    given = messages(0, 0, [event(), b"x"], at=NOW + ahead)
    found = decode(clicks(), given, {0: Place(0, known_us=77)})
    taken = int((NOW + ahead).timestamp() * 1e6)
    assert found.events["known_at"].cast("int64").to_pylist() == [taken]
    assert found.places[0].known_us == taken + 1_000_000
    assert found.rejected.column("reason").to_pylist() == ["the message is not a JSON object"]


@pytest.mark.parametrize("seed", range(10))
def test_the_batches_in_which_messages_come_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    source = clicks(allowed_lateness=15 * MINUTE)
    kinds = [lambda: event(amount=chance.randrange(100)), lambda: chance.choice(POISON)[0]]
    given = [
        chance.choices(kinds, [5, 1])[0]()
        if chance.random() < 0.5
        else event(
            at=(START + chance.randrange(60) * MINUTE).isoformat(), amount=chance.choice([1, 2.5, "x"])
        )
        for _ in range(40)
    ]
    whole = decode(source, messages(0, 0, given), {0: None})
    places: dict[int, Place | None] = {0: None}
    events, rejected = [], []
    first = 0
    while first < len(given):
        end = first + chance.randrange(1, 9)
        part = decode(source, messages(0, first, given[first:end]), places)
        events.append(part.events)
        rejected.append(part.rejected)
        places, first = dict(part.places), end
    assert places == whole.places
    assert pa.concat_tables(events).equals(whole.events)
    assert pa.concat_tables(rejected).equals(whole.rejected)
    assert whole.rejected.num_rows


def test_a_time_is_read_alike_alone_and_beside_others() -> None:
    texts = [
        *("2024-05-01T00:00:00+00:00", "2024-05-01T05:30:00.000001+05:30", "2024-04-30T12:00:00.5-12:00"),
        *("2024-05-01T00:00:00Z", "2024-05-01 00:00", "2024-04-30", " 2024-05-01T00:00:00Z "),
        *(
            "2024-02-30T00:00:00Z",
            "2024-05-01T24:00:00Z",
            "2024-05-01T00:00:60Z",
            "2024-05-01T00:00:00+99:00",
        ),
    ]
    given = [event(at=text, number=n) for n, text in enumerate(texts)]
    together = decode(clicks(), messages(0, 0, given), {})
    alone = [decode(clicks(), messages(0, n, [one]), {}) for n, one in enumerate(given)]
    names = ["id", "event_timestamp"]
    rows = pa.concat_tables([each.events.select(names) for each in alone])
    assert rows.to_pylist() == together.events.select(names).to_pylist()
    assert 4 <= rows.num_rows < len(texts)
    aside = pa.concat_tables([each.rejected.select(["row", "reason"]) for each in alone])
    assert aside.to_pylist() == together.rejected.select(["row", "reason"]).to_pylist()
