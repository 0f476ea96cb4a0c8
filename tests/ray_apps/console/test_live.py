"""Streams of changes: what a page hears, after a gap too, and how few watchers many pages need."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from fastapi import Request

from tests.ray_apps.console.conftest import Platform, Visitor
from tests.ray_apps.console.sample_platform import MODEL
from tests.ray_apps.console.test_pages import PAGES, VERSION
from toque.functions.reporting.page import write_page
from toque.functions.runtime.changes import Watch, announcer_of
from toque.ray_apps.console import live
from toque.ray_apps.console.live import LiveChanges, OpenPage, is_topic
from toque.ray_apps.console.route import _in_session, proof_of_forms
from toque.registry import Journal, ObjectStore, Registry, Table, open_store

# Pages that follow something: no explanation, which loads a model, and no list of tokens, which tells when they were used.
_LIVE = [each for each in PAGES if "explain" not in each and "tokens" not in each]


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


async def opened(platform: Platform, visitor: Visitor, address: str, workspace: str = "default") -> OpenPage:
    """A page as the stream of a visitor's browser follows it."""
    sent = visitor.http.build_request("GET", "/ui/events").headers.raw
    headers = [(name.lower(), value) for name, value in sent]
    scope = {"type": "http", "method": "GET", "path": "/ui/events", "query_string": b"", "headers": headers}
    console = platform.app.state.console
    request = await _in_session(Request(scope | {"app": platform.app, "client": ("127.0.0.1", 1)}), console)
    proof = partial(proof_of_forms, request)
    return OpenPage(request, console.renderings, address, workspace=workspace, csrf=proof)


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


async def test_a_page_is_rendered_once_for_all_who_may_see_the_same_and_has_the_forms_of_each(
    platform: Platform, redis_url: str
) -> None:
    console = platform.app.state.console
    both = [await platform.signed_in("approver") for _ in range(2)]
    whole = [(await each.get(VERSION)).text for each in both]
    proofs = [re.search(r'name="csrf" value="(\w+)"', each)[1] for each in whole]  # type: ignore[index]
    assert proofs[0] != proofs[1]
    open_pages = [await opened(platform, each, VERSION) for each in both]
    contents = [json.loads(await each.show("1") or "") for each in open_pages]
    assert console.renderings.count == 1
    for text, proof, page in zip(contents, proofs, whole, strict=True):
        assert text.count(proof) == page.count(proof) - 1  # that of signing out stands in the header
        assert text.strip() in page
        assert "<html" not in text
    assert contents[0].replace(proofs[0], proofs[1]) == contents[1]
    platform.context.registry().as_actor("grace").approve(MODEL, 5, comment="from afar")
    assert "from afar" not in (await open_pages[0].show("1") or "")
    assert "from afar" in (await open_pages[0].show("2") or "")
    assert console.renderings.count == 2
    viewer = await opened(platform, await platform.signed_in("viewer"), VERSION)
    assert "Approve version" not in (await viewer.show("2") or "")
    assert console.renderings.count == 3


async def test_whose_session_or_token_ended_gets_no_content(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = await opened(platform, visitor, "/ui/models")
    assert await page.show("1")
    bearer = platform.visitor(Authorization=f"Bearer {platform.tokens['viewer']}")
    by_token = await opened(platform, bearer, "/ui/models")
    assert await by_token.show("1")
    await visitor.send("/ui/models", "/ui/sign-out")
    assert await page.show("1") is None
    platform.access.revoke("a-viewer")
    async with asyncio.timeout(20):
        while await by_token.show("1"):  # noqa: ASYNC110  # the door looks at its list now and then
            await asyncio.sleep(0.05)
    for wrong in ("/ui/nothing-here", "/ui/sign-out", "/ui/static/console.css"):
        other = await opened(platform, await platform.signed_in("admin"), wrong)
        assert await other.show("1") is None


@pytest.mark.parametrize("path", _LIVE)
async def test_a_page_shows_the_same_to_all_who_have_the_same_grants(platform: Platform, path: str) -> None:
    for name in ("grace", "joan"):
        platform.tokens[name] = platform.access.create_token(name, "admin")
    contents = []
    for name in ("grace", "joan"):
        visitor = await platform.signed_in(name)
        contents.append(await (await opened(platform, visitor, path)).show(name))
        platform.app.state.console.renderings._made.clear()
    assert contents[0]
    plain = [re.sub(r'(?<=csrf\\" value=\\")\w+', "", each or "") for each in contents]
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    "address",
    ["/ui/events?topic=models/*", "/ui/%65vents/", "/models", "//elsewhere/ui/", "/workspaces/payments/ui/"],
)
async def test_an_address_that_is_no_page_of_the_workspace_is_refused(
    platform: Platform, address: str
) -> None:
    visitor = await platform.signed_in("viewer")
    answer = await visitor.http.get("/ui/events", params={"topic": "models/*", "address": address})
    assert answer.status_code == 422
    assert "is no page of this workspace" in answer.text


async def test_who_is_of_one_workspace_follows_its_pages_without_naming_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS", 0)  # asked for after the address
    visitor = await platform.signed_in("payments")
    for address in ("/ui/models", "/workspaces/payments/ui/models"):
        answer = await visitor.http.get("/ui/events", params={"topic": "models/*", "address": address})
        assert answer.status_code == 204
    page = await opened(platform, visitor, "/ui/models", "payments")
    text = json.loads(await page.show("1") or "")
    assert "/workspaces/payments/ui" in (await visitor.get("/ui/models")).text
    assert MODEL not in text


async def test_a_page_that_is_followed_gets_its_content_when_it_differs(
    store: ObjectStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_GAP_S", 0.0)
    shown = ["a"]

    class Shown:
        address = "/ui/models"

        async def show(self, _: str) -> str | None:
            return shown[0] or None

    changes = LiveChanges(store, redis_url)
    streams = [changes.stream("default", ["models/late"], "", Shown()) for _ in range(2)]
    for each in streams:
        await anext(each)
    assert len(changes._pages) == 1
    (topic,) = changes._topics.values()
    topic.tell("changed", "")
    assert ["data: a\n" in await hear(each, "page") for each in streams] == [True, True]
    for text, kind in (("a", ""), ("b", "page"), ("", "changed"), ("b", "page")):
        shown[0] = text
        topic.tell("changed", "")
        if kind:
            assert f"data: {text}\n" in await hear(streams[0], kind)
    for each in streams:
        await each.aclose()
    assert not changes._pages
