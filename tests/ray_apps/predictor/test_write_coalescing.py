"""Coalesced writes: in order, whole, after their records, and never late."""

from __future__ import annotations

import asyncio
import copy
import re
from typing import Any

import pytest

from toque.ray_apps.predictor import write_coalescing
from toque.ray_apps.predictor.write_coalescing import CoalescedTransport, WriteBatch, current_batch


class Wire:
    """A transport, and what it was told."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def write_eof(self) -> None:
        self.said.append("end")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.said.append("closed")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(write_coalescing, "time", made)
    return made


def connection(*, busy: bool = True) -> tuple[Wire, CoalescedTransport]:
    wire = Wire()
    return wire, CoalescedTransport(wire, lambda: busy)  # type: ignore[arg-type]  # as much of one as is used


async def test_writes_wait_until_the_loop_has_run_what_is_ready(clock: Clock) -> None:
    (first, one), (second, other) = connection(), connection()
    one.response_complete()
    one.write(b"head ")
    one.write(bytearray(b"body"))
    other.write(b"another")
    assert first.said == second.said == []
    clock.now += 0.001
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (first.said, second.said) == ([b"head body"], [b"another"])


async def test_a_lone_response_leaves_at_once_and_flushes_the_waiting_ones(clock: Clock) -> None:
    (first, one), (second, alone) = connection(), connection(busy=False)
    one.response_complete()
    one.write(b"early")
    alone.write(b"last")
    assert (first.said, second.said) == ([b"early"], [b"last"])


async def test_slow_responses_do_not_wait(clock: Clock) -> None:
    wire, slow = connection()
    for n in range(3):
        clock.now += 2 * write_coalescing.MAX_GAP_S
        slow.write(b"head")
        slow.write(b"body")
        slow.response_complete()
        assert wire.said == [b"head", b"body"] * (n + 1)


async def test_fast_responses_do_not_wait_for_a_slow_one(clock: Clock) -> None:
    (first, fast), (second, slow) = connection(), connection()
    fast.response_complete()
    fast.write(b"fast")
    clock.now += 2 * write_coalescing.MAX_GAP_S
    assert first.said == []
    slow.write(b"slow")
    assert (first.said, second.said) == ([b"fast"], [b"slow"])


async def test_no_write_waits_longer_than_the_bound(clock: Clock) -> None:
    (first, one), (second, other) = connection(), connection()
    one.response_complete()
    one.write(b"first")
    for _ in range(10):
        clock.now += write_coalescing.MAX_GAP_S * 0.9
        other.write(b"x")
        other.response_complete()
    assert first.said == [b"first"]
    assert b"".join(second.said) in {b"x" * n for n in range(4, 11)}


async def test_a_large_write_is_sent_at_once_and_the_rest_after_it(clock: Clock) -> None:
    wire, one = connection()
    one.response_complete()
    one.write(b"head")
    one.write(bytes(write_coalescing.MAX_BUFFERED_BYTES))
    assert wire.said == [b"head" + bytes(write_coalescing.MAX_BUFFERED_BYTES)]
    one.write(b"rest")
    one.write_eof()
    one.write(b"")
    one.close()
    assert wire.said[1:] == [b"rest", "end", b"", "closed"]


async def test_nothing_is_sent_on_a_closing_connection(clock: Clock) -> None:
    wire, one = connection()
    one.response_complete()
    one.write(b"answer")
    wire.closing = True
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.said == []


class RecordWriter:
    """A record writer that notes its records among the writes of the transport."""

    def __init__(self, wire: Wire) -> None:
        self.said = wire.said

    def write_pending(self, records: list[Any]) -> None:
        self.said.append(records)


@pytest.mark.parametrize("size", [2, 2 * write_coalescing.MAX_BUFFERED_BYTES], ids=["little", "much"])
@pytest.mark.parametrize("others", [True, False], ids=["busy", "alone"])
@pytest.mark.parametrize(
    "since",
    [0, 0.9 * write_coalescing.MAX_GAP_S, 2 * write_coalescing.MAX_GAP_S, 2 * write_coalescing.MAX_DELAY_S],
)
async def test_pending_records_are_written_once_and_before_their_response_leaves(
    clock: Clock, size: int, *, others: bool, since: float
) -> None:
    wire, one = connection(busy=others)
    writer = RecordWriter(wire)
    one.response_complete()
    for n in range(4):
        current_batch().pending_of(writer).append(f"r{n}")
        clock.now += since
        one.write(f"a{n}".encode().ljust(size))
        one.response_complete()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    heard = " ".join(" ".join(said) if isinstance(said, list) else said.decode() for said in wire.said)
    events = re.findall(r"[ar]\d", heard)
    assert sorted(events) == [f"{kind}{n}" for kind in "ar" for n in range(4)]
    assert all(events.index(f"r{n}") < events.index(f"a{n}") for n in range(4))


async def test_pending_records_are_written_before_any_other_call_of_the_transport(clock: Clock) -> None:
    wire, one = connection()
    current_batch().pending_of(RecordWriter(wire)).append("a")
    one.write_eof()
    assert wire.said == [["a"], "end"]


async def test_each_writer_gets_its_own_records(clock: Clock) -> None:
    (first, one), (second, _) = connection(busy=False), connection()
    for writer in (mine := RecordWriter(first), RecordWriter(second), mine):
        current_batch().pending_of(writer).append("x")
    one.write(b"answer")
    assert (first.said, second.said) == ([["x", "x"], b"answer"], [["x"]])


async def test_a_batch_belongs_to_its_loop_and_stays_in_its_process() -> None:
    here = current_batch()
    assert here is current_batch()
    assert here.is_of_running_loop()
    assert await asyncio.to_thread(lambda: asyncio.run(seen_elsewhere(here))) == (False, False)
    assert copy.deepcopy({"state": here}) == {
        "state": None
    }  # as by pickle, with which Serve sends a scope to another process


async def seen_elsewhere(other: WriteBatch) -> tuple[bool, bool]:
    return other.is_of_running_loop(), current_batch() is other
