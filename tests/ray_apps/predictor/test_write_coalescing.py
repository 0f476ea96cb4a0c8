"""Answers that go out together: in their order, whole, to who is there, and never late."""

from __future__ import annotations

import asyncio
import copy
import re
from typing import Any

import pytest

from ray_apps.predictor import write_coalescing as gathering
from ray_apps.predictor.write_coalescing import Gathered, Moment, moment


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
    monkeypatch.setattr(gathering, "time", made)
    return made


def connection(*, busy: bool = True) -> tuple[Wire, Gathered]:
    wire = Wire()
    return wire, Gathered(wire, lambda: busy)  # type: ignore[arg-type]  # as much of one as is used


async def test_answers_wait_for_the_end_of_the_moment(clock: Clock) -> None:
    (first, one), (second, other) = connection(), connection()
    one.answered()
    one.write(b"head ")
    one.write(bytearray(b"body"))
    other.write(b"another")
    assert first.said == second.said == []
    clock.now += 0.001
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (first.said, second.said) == ([b"head body"], [b"another"])


async def test_who_is_alone_does_not_wait_and_sends_what_waits(clock: Clock) -> None:
    (first, one), (second, alone) = connection(), connection(busy=False)
    one.answered()
    one.write(b"early")
    alone.write(b"last")
    assert (first.said, second.said) == ([b"early"], [b"last"])


async def test_answers_that_take_long_themselves_do_not_wait(clock: Clock) -> None:
    wire, slow = connection()
    for n in range(3):
        clock.now += 2 * gathering.SOON_S
        slow.write(b"head")
        slow.write(b"body")
        slow.answered()
        assert wire.said == [b"head", b"body"] * (n + 1)


async def test_nobody_waits_for_one_that_takes_long(clock: Clock) -> None:
    (first, fast), (second, slow) = connection(), connection()
    fast.answered()
    fast.write(b"fast")
    clock.now += 2 * gathering.SOON_S
    assert first.said == []
    slow.write(b"slow")
    assert (first.said, second.said) == ([b"fast"], [b"slow"])


async def test_nothing_waits_for_longer_than_it_may(clock: Clock) -> None:
    (first, one), (second, other) = connection(), connection()
    one.answered()
    one.write(b"first")
    for _ in range(10):
        clock.now += gathering.SOON_S * 0.9
        other.write(b"x")
        other.answered()
    assert first.said == [b"first"]
    assert b"".join(second.said) in {b"x" * n for n in range(4, 11)}


async def test_much_is_sent_at_once_and_the_rest_after_it(clock: Clock) -> None:
    wire, one = connection()
    one.answered()
    one.write(b"head")
    one.write(bytes(gathering.MAX_KEPT_BYTES))
    assert wire.said == [b"head" + bytes(gathering.MAX_KEPT_BYTES)]
    one.write(b"rest")
    one.write_eof()
    one.write(b"")
    one.close()
    assert wire.said[1:] == [b"rest", "end", b"", "closed"]


async def test_who_has_gone_is_sent_nothing(clock: Clock) -> None:
    wire, one = connection()
    one.answered()
    one.write(b"answer")
    wire.closing = True
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.said == []


class Debtor:
    """Does what is owed where the answers are heard of, too."""

    def __init__(self, wire: Wire) -> None:
        self.said = wire.said

    def settle(self, owed: list[Any]) -> None:
        self.said.append(owed)


@pytest.mark.parametrize("size", [2, 2 * gathering.MAX_KEPT_BYTES], ids=["little", "much"])
@pytest.mark.parametrize("others", [True, False], ids=["busy", "alone"])
@pytest.mark.parametrize("since", [0, 0.9 * gathering.SOON_S, 2 * gathering.SOON_S, 2 * gathering.LONGEST_S])
async def test_what_is_owed_is_settled_once_and_before_the_answer_leaves(
    clock: Clock, size: int, *, others: bool, since: float
) -> None:
    wire, one = connection(busy=others)
    debtor = Debtor(wire)
    one.answered()
    for n in range(4):
        moment().owed_by(debtor).append(f"r{n}")
        clock.now += since
        one.write(f"a{n}".encode().ljust(size))
        one.answered()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    heard = " ".join(" ".join(said) if isinstance(said, list) else said.decode() for said in wire.said)
    events = re.findall(r"[ar]\d", heard)
    assert sorted(events) == [f"{kind}{n}" for kind in "ar" for n in range(4)]
    assert all(events.index(f"r{n}") < events.index(f"a{n}") for n in range(4))


async def test_what_is_owed_is_settled_before_a_connection_does_anything_else(clock: Clock) -> None:
    wire, one = connection()
    moment().owed_by(Debtor(wire)).append("a")
    one.write_eof()
    assert wire.said == [["a"], "end"]


async def test_each_owes_its_own(clock: Clock) -> None:
    (first, one), (second, _) = connection(busy=False), connection()
    for debtor in (mine := Debtor(first), Debtor(second), mine):
        moment().owed_by(debtor).append("x")
    one.write(b"answer")
    assert (first.said, second.said) == ([["x", "x"], b"answer"], [["x"]])


async def test_a_moment_is_of_its_loop_and_stays_in_its_process() -> None:
    here = moment()
    assert here is moment()
    assert here.is_here()
    assert await asyncio.to_thread(lambda: asyncio.run(seen_elsewhere(here))) == (False, False)
    assert copy.deepcopy({"state": here}) == {
        "state": None
    }  # as pickle, which Serve takes a scope elsewhere by


async def seen_elsewhere(other: Moment) -> tuple[bool, bool]:
    return other.is_here(), moment() is other
