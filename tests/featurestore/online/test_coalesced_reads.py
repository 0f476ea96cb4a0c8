"""Coalesced reads of one event loop: each reader gets its own values and its own cancellation."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.featurestore.online import redis_store as joint
from toque.featurestore.online.redis_store import CoalescedReads, Values


class Store:
    """Records the keys of each fetch, and answers when released."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.begun, self.open = asyncio.Event(), asyncio.Event()

    async def ask(self, keys: Sequence[bytes]) -> Values:
        self.asked.append(list(keys))
        self.begun.set()
        await self.open.wait()
        if b"broken" in keys:
            raise ConnectionError("away")
        return [None if key == b"none" else b"value of " + key for key in keys]


def value_of(key: bytes) -> bytes | None:
    return None if key == b"none" else b"value of " + key


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([b"a", b"b", b"none"]), min_size=1, max_size=5), max_size=12),
    st.integers(1, 6),
)
def test_each_gets_the_values_of_its_own_keys(wanted: list[list[bytes]], at_once: int) -> None:
    async def read() -> list[Values]:
        store = Store()
        store.open.set()
        reads = CoalescedReads(store.ask)
        found = await asyncio.gather(*(reads.read(keys) for keys in wanted))
        assert [key for keys in store.asked for key in keys] == [key for keys in wanted for key in keys]
        assert all(len(keys) <= max(at_once, *map(len, wanted)) for keys in store.asked)
        return list(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "KEYS_AT_ONCE", at_once)
        assert asyncio.run(read()) == [[value_of(key) for key in keys] for keys in wanted]


async def test_what_comes_while_a_read_is_on_its_way_goes_together() -> None:
    store = Store()
    reads = CoalescedReads(store.ask)
    first = asyncio.create_task(reads.read([b"a"]))
    await store.begun.wait()
    others = [asyncio.create_task(reads.read([b"b", b"c"])) for _ in range(3)]
    await asyncio.sleep(0)
    store.open.set()
    assert await first == [b"value of a"]
    for each in others:
        assert await each == [b"value of b", b"value of c"]
    assert store.asked == [[b"a"], [b"b", b"c"] * 3]


async def test_who_gave_up_is_not_asked_for_and_stops_nobody() -> None:
    store = Store()
    reads = CoalescedReads(store.ask)
    first = asyncio.create_task(reads.read([b"a"]))
    await store.begun.wait()
    gone, stays = asyncio.create_task(reads.read([b"b"])), asyncio.create_task(reads.read([b"c"]))
    await asyncio.sleep(0)
    first.cancel()
    gone.cancel()
    await asyncio.sleep(0)
    store.open.set()
    assert await stays == [b"value of c"]
    assert store.asked == [[b"a"], [b"c"]]


async def test_a_failure_is_that_of_those_who_read_together_and_the_next_read_is_a_new_one() -> None:
    store = Store()
    store.open.set()
    reads = CoalescedReads(store.ask)
    both = await asyncio.gather(reads.read([b"a"]), reads.read([b"broken"]), return_exceptions=True)
    assert [type(each) for each in both] == [ConnectionError] * 2
    assert await reads.read([b"a"]) == [b"value of a"]
