"""Streams of changes: what a page hears, after a gap too, and how few watchers many pages need."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from functions.reporting.html import write_page
from functions.runtime.changes.announcer import announcer_of
from functions.runtime.changes.feed import Watch
from ray_apps.console import live
from ray_apps.console.live import LiveChanges, is_topic
from registry import Journal, ObjectStore, Registry, Table, open_store
from tests.ray_apps.console.conftest import Platform


@pytest.fixture
def store(tmp_path: Path, redis_url: str) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store", announce=announcer_of(redis_url))


async def hear(stream: object, kind: str) -> str:
    """Wait for the next event of a kind."""
    async with asyncio.timeout(20):
        while True:
            text = (await anext(stream)).decode()
            if f"event: {kind}\n" in text:
                return text


async def test_two_pages_share_a_watch_and_hear_of_a_change_of_their_topic_alone(
    store: ObjectStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_GAP_S", 0.0)  # else what came meanwhile is told later
    monkeypatch.setattr(live, "_GAP_OF_ONE_S", 0.0)
    changes = LiveChanges(store, redis_url)
    registry = Registry(store, actor="ada")
    streams = [changes.stream("default", ["models/late"], "") for _ in range(2)]
    for each in streams:
        assert await anext(each) == b"retry: 2000\n\n"
    assert len(changes._topics) == 1
    (topic,) = changes._topics.values()
    assert isinstance(topic.watch, Watch)
    heard = [asyncio.ensure_future(hear(each, "changed")) for each in streams]
    async with asyncio.timeout(20):
        while not all(each.done() for each in heard):
            registry.create_model("late", exist_ok=True)
            registry.set_model_tags("late", {"t": "x"})
            await asyncio.sleep(0.1)
    other = changes.stream("default", ["models/later"], "")
    await anext(other)
    later = changes._topics["default", "models/later"]

    async def change_later() -> None:
        """Change the other model until that is told; what was announced before it is counted then, too."""
        count = later.count
        async with asyncio.timeout(20):
            while later.count == count:
                registry.create_model("later", exist_ok=True)
                registry.set_model_tags("later", {"t": "x"})
                await asyncio.sleep(0.1)

    await change_later()
    before = topic.count
    await change_later()
    assert topic.count == before
    await other.aclose()
    for each in streams:
        await each.aclose()
    assert changes._streams == 0


async def test_who_comes_back_after_a_change_is_told_and_who_missed_nothing_is_not(
    store: ObjectStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BEAT_S", 0.05)
    changes = LiveChanges(store, redis_url)
    first = changes.stream("default", ["models/late"], "")
    await anext(first)
    last = (await hear(first, "beat")).partition("\n")[0].removeprefix("id: ")
    await first.aclose()
    again = changes.stream("default", ["models/late"], last)
    await anext(again)
    assert "event: beat" in (await anext(again)).decode() or next(iter(changes._topics.values())).count
    elsewhere = changes.stream("default", ["models/late"], "another-gateway-7")
    await anext(elsewhere)
    assert "event: changed" in (await anext(elsewhere)).decode()
    for each in (again, elsewhere):
        await each.aclose()


async def test_a_topic_that_nobody_follows_is_forgotten(
    store: ObjectStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_IDLE_S", 0.0)
    changes = LiveChanges(store, redis_url)
    stream = changes.stream("payments", ["models/*", "figures/late"], "")
    await anext(stream)
    assert len(changes._topics) == 2
    await stream.aclose()
    async with asyncio.timeout(20):
        while changes._topics:  # noqa: ASYNC110  # its task forgets them
            await asyncio.sleep(0.05)


async def test_a_page_of_a_run_hears_of_what_the_run_logs(
    store: ObjectStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FIGURES_S", 0.0)
    changes = LiveChanges(store, redis_url)
    stream = changes.stream("default", ["runs/a1"], "")
    await anext(stream)
    (topic,) = changes._topics.values()
    heard = asyncio.ensure_future(hear(stream, "changed"))
    async with asyncio.timeout(20):
        while topic.written is None or topic.watch is None or not topic.watch._feed.covers(topic.watch):  # noqa: ASYNC110  # another task looks
            await asyncio.sleep(0.02)
        number = 0
        while not heard.done():
            store.put(f"runs/a1/segments/{number:06d}.json", b"{}")
            number += 1
            await asyncio.sleep(0.1)
    await stream.aclose()
    for odd in ("runs/*", "../runs", "dead_letters/x", "runs/"):
        assert is_topic(odd) == (odd == "runs/*")
    assert is_topic("dead_letters")
    assert is_topic("quotas")


async def test_a_topic_that_changes_all_the_time_tells_it_now_and_then(store: ObjectStore) -> None:
    """Each change that is told makes every page ask for itself again."""
    now = [0.0]
    changes = LiveChanges(store, None, clock=lambda: now[0])
    stream = changes.stream("default", ["invocations/*"], "")
    await anext(stream)
    (topic,) = changes._topics.values()
    changed = [0]

    class Busy(Watch):
        def due(self) -> bool:
            changed[0] += 1
            return True

    topic.watch = Busy(every_s=0.0)
    async with asyncio.timeout(20):
        while topic.count < 1:  # noqa: ASYNC110  # another task looks
            await asyncio.sleep(0.01)
        now[0] += changes.gap_s * 0.9
        looks = changes._looks
        while changes._looks < looks + 3:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
        assert topic.count == 1
        now[0] += changes.gap_s * 0.2
        while topic.count < 2:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    assert changes.gap_s == 1.5
    others = [changes.stream("default", [f"models/m{number}"], "") for number in range(199)]
    for each in others:
        await anext(each)
    assert changes.gap_s == pytest.approx(6.0)  # whatever they follow
    for each in others:
        await each.aclose()
    await stream.aclose()


@pytest.mark.parametrize(
    "topic", ["tables/features", "features/*", "reports/*", "invocations/*", "schedules/*", "quotas"]
)
async def test_pages_hear_of_rows_reports_and_schedules(
    store: ObjectStore, redis_url: str, topic: str
) -> None:
    changes = LiveChanges(store, redis_url)
    stream = changes.stream("default", [topic], "")
    await anext(stream)
    heard = asyncio.ensure_future(hear(stream, "changed"))
    kind = topic.partition("/")[0]
    async with asyncio.timeout(20):
        number = 0
        while not heard.done():
            number += 1
            if kind == "tables":
                Table(store, "features/default/planes").append(pa.table({"a": [number]}))
            elif kind == "reports":
                write_page(store, f"reports/late-{number}.html", "<p>page</p>")
            elif kind == "quotas":
                Journal(store, kind, actor="ada").append({"team": "a", "quota": None}, at=number - 1)
            else:
                Journal(store, f"{kind}/x{number}", actor="ada").append({}, at=0)
            await asyncio.sleep(0.05)
    await stream.aclose()


async def test_a_gateway_feeds_so_many_streams_and_tells_further_pages_to_do_without(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = await platform.signed_in("viewer")
    monkeypatch.setattr(live, "MAX_STREAMS", 0)
    assert (await visitor.get("/ui/events?topic=models/*")).status_code == 204
    assert (await visitor.get("/ui/events?topic=../secrets")).status_code == 422
    assert (await platform.visitor().get("/ui/events?topic=models/*")).status_code == 401


@pytest.mark.parametrize(
    ("name", "right"),
    [("models/late-flights", True), ("rollouts/*", True), ("models/", False), ("a/b/c", False), ("m/*x", False),
     ("models/" + "x" * 200, False), ("Models/x", False), ("models/x\n", False)],
)  # fmt: skip
def test_a_topic_is_a_kind_and_a_name(name: str, *, right: bool) -> None:
    assert is_topic(name) is right
