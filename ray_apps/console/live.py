"""Changes told to open pages as they happen, and the contents that are sent: made once for all viewers of this process.

A topic is a journal, or all of one kind ("models/late-flights", "rollouts/*"), the tables of one kind ("tables/features"), the
reports ("reports/*"), or a model's live figures ("figures/late-flights"). Journals, tables and reports are announced by Redis, so
watching costs no read. A page that is followed with its address gets its content after a change, if that differs from what it got
last; another hears of the change, and asks for itself again. Figures are read once for all viewers and sent as they are. A content
follows from the page's address, its workspace and the viewer's grants: the viewer's name stands in the header alone, which is not
rendered again, and the proof of a viewer's forms is put in when the content is sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx
from anyio import to_thread
from cachetools import LRUCache
from fastapi import Request
from redis import RedisError
from starlette.types import ASGIApp, Receive, Scope, Send

from toque.functions.live_counts import read_figures
from toque.functions.pages.rendering import milliseconds, number
from toque.functions.runtime.changes import Watch, feed_of, journals_in
from toque.ray_apps.admission import Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS, client_of, header
from toque.registry import Grant, ObjectStore, Unavailable, workspace_store
from toque.registry.times import CHANCE

MAX_TOPICS: Final = 8
MAX_STREAMS: Final = 400
STREAM_S: Final = 55.0
"""Longest time of a stream; the browser opens another, and is admitted anew."""
_TOPIC = re.compile(r"(?:dead_letters|quotas|[a-z][a-z-]{0,31}/(?:\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127}))\Z")
_FIGURES = "figures/"
_COUNTED = ("runs/", "invocations/")
"""Topics of one thing that writes objects beside its journal, a run its curves, an invocation its log: they are counted."""
_LOOK_S, _FIGURES_S, _BEAT_S = 0.2, 2.0, 10.0
_IDLE_S = 15.0  # a topic outlives its last listener by so much, as a page that is reloaded comes back
_POLL_S = 15.0  # without Redis pages look again so often
_NEVER_S = 86_400.0
_GAP_S, _GAP_OF_ONE_S = 1.5, 0.03
"""Least time between two changes that a topic tells, and what each of many pages that differ adds to it, whatever they follow: some
topics change all the time, and each change that is told makes pages be rendered, once for all viewers of the same."""
_SPREAD_S, _SPREAD_MOST_S, _SENT_S = 0.008, 1.2, 0.4
"""Listeners are told one after another, so that no answer waits for all of them: time for each whose page must be rendered, for all
together at most, and for all to whom a page is sent that others see, too."""
Event = tuple[str, str]
PART: Final = "toque.part"
"""Key of the scope of a request for a page's content alone, without what stands around it."""
_RENDER_S: Final = 20.0  # a page that takes longer asks for itself, and waits for as long as it likes
_RENDERINGS_KEPT: Final = 128
_CSRF: Final = secrets.token_hex(16)  # stands for the proof of a viewer's forms


class View(Protocol):
    """Page that is followed with its address."""

    @property
    def address(self) -> str:
        """Path and query of the page."""
        ...

    async def show(self, version: str, /) -> str | None:
        """Get the page's content as JSON, at a version of its topics or later; None: it must be asked for."""
        ...


@dataclass(eq=False)
class _Topic:
    """Topic that open pages follow. watch: of its journals; None for figures. count: changes so far. written: objects at the last look."""

    name: str
    workspace: str
    watch: Watch | None
    listeners: set[asyncio.Queue[Event]] = field(default_factory=set)
    count: int = 0
    written: int | None = None
    read_at: float = 0.0
    told_at: float = float("-inf")
    left_at: float = 0.0
    last: str = ""

    def tell(self, kind: str, data: str) -> None:
        for each in self.listeners:
            if each.qsize() < MAX_TOPICS:  # a listener that is behind gets all of it with the next
                each.put_nowait((kind, data))


class LiveChanges:
    """Followers of topics in this process, fed by one task that ends with the last of them.

    store: the platform's. redis_url: where changes are announced and requests counted; None: pages look again by themselves.
    """

    def __init__(
        self,
        store: ObjectStore,
        redis_url: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._redis_url, self._clock = store, redis_url, clock
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._task: asyncio.Task[None] | None = None
        self._process = secrets.token_hex(4)
        self._streams = self._looks = 0
        self._pages: Counter[tuple[str, object]] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether this process feeds as many streams as it may; a page works without one."""
        return self._streams >= MAX_STREAMS

    @property
    def gap_s(self) -> float:
        """Least time between two changes that a topic tells."""
        return max(_GAP_S, _GAP_OF_ONE_S * len(self._pages))

    async def stream(
        self, workspace: str, names: Sequence[str], last_id: str, view: View | None = None
    ) -> AsyncIterator[bytes]:
        """Yield server-sent events of topics until the stream is old.

        last_id: of the stream before; if something changed since, the first event tells it. view: page whose content is sent after a
        change; None: the change alone is told.
        """
        page = (workspace, object() if view is None else view.address)
        self._streams += 1
        self._pages[page] += 1
        topics = [self._topic(workspace, name) for name in dict.fromkeys(names)]
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for topic in topics:
            topic.listeners.add(queue)
        try:
            yield b"retry: 2000\n\n"
            sent = ""
            if last_id and last_id != self._id(topics):
                queue.put_nowait(("changed", ""))
            until = self._clock() + STREAM_S * CHANCE.uniform(0.8, 1.0)
            while (left := until - self._clock()) > 0:
                try:
                    kind, data = await asyncio.wait_for(queue.get(), min(_BEAT_S, left))
                except TimeoutError:
                    yield self._event(self._id(topics), "beat", "")
                    continue
                await asyncio.sleep(CHANCE.uniform(0, self._spread_s(topics)))
                version = self._id(
                    topics
                )  # before the page is rendered: what changes meanwhile is told with the next
                if kind == "changed":
                    content = None if view is None else await view.show(version)
                    if content is not None and content == sent:
                        continue
                    kind, data = ("changed", "") if content is None else ("page", content)
                    sent = data
                yield self._event(version, kind, data)
        finally:
            self._streams -= 1
            self._pages[page] -= 1
            self._pages += Counter()  # without pages that nobody has open
            for topic in topics:
                topic.listeners.discard(queue)
                topic.left_at = self._clock()

    def _topic(self, workspace: str, name: str) -> _Topic:
        key = (workspace, name)
        if key not in self._topics:
            watch = None if name.startswith(_FIGURES) else self._watch(workspace, name)
            if watch is not None:
                watch.due()  # a new watch is due once, which is no change
            self._topics[key] = _Topic(name, workspace, watch)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self._topics[key]

    def _watch(self, workspace: str, name: str) -> Watch:
        if self._redis_url is None:
            return Watch(every_s=_POLL_S)
        store = workspace_store(self._store, workspace)
        journals = [journals_in(store, path) for path in (name, f"{name}/*")]
        return feed_of(self._redis_url).watch(*journals, every_s=_POLL_S, slow_s=_NEVER_S)

    async def _run(self) -> None:
        """Look at every topic in turn, and forget those that nobody follows any more."""
        while self._topics:
            self._looks += 1
            now = self._clock()
            for key, topic in list(self._topics.items()):
                if not topic.listeners and now - topic.left_at > _IDLE_S:
                    del self._topics[key]
                    if topic.watch is not None:
                        topic.watch.close()
                elif topic.watch is None:
                    await self._look_at_figures(topic, now)
                elif now - topic.told_at >= self.gap_s and (
                    topic.watch.due() or await self._has_written(topic, now)
                ):
                    topic.told_at = now
                    topic.count += 1
                    topic.tell("changed", "")
            await asyncio.sleep(_LOOK_S)

    async def _has_written(self, topic: _Topic, now: float) -> bool:
        """Whether a run or an invocation has written another segment since the last look; never true of other topics."""
        if not topic.name.startswith(_COUNTED) or "*" in topic.name or now - topic.read_at < _FIGURES_S:
            return False
        topic.read_at = now
        store = workspace_store(self._store, topic.workspace)
        try:
            written = await to_thread.run_sync(lambda: sum(1 for _ in store.list(f"{topic.name}/")))
        except Unavailable:
            return False
        before, topic.written = topic.written, written
        return before is not None and written != before

    async def _look_at_figures(self, topic: _Topic, now: float) -> None:
        if self._redis_url is None or not topic.listeners or now - topic.read_at < _FIGURES_S:
            return
        topic.read_at = now
        model = topic.name.removeprefix(_FIGURES)
        try:
            found = await to_thread.run_sync(read_figures, self._redis_url, topic.workspace, model)
        except (RedisError, OSError):
            return  # the page shows what it had; the next look is two seconds away
        text = json.dumps(figure_texts(found.model_dump(mode="json")))
        if text != topic.last:
            topic.last = text
            topic.tell("figures", text)

    def _id(self, topics: Sequence[_Topic]) -> str:
        return f"{self._process}-{'.'.join(str(topic.count) for topic in topics)}"

    @staticmethod
    def _event(version: str, kind: str, data: str) -> bytes:
        return f"id: {version}\nevent: {kind}\ndata: {data}\n\n".encode()

    def _spread_s(self, topics: Sequence[_Topic]) -> float:
        listeners = max(len(topic.listeners) for topic in topics)
        rendered = _SPREAD_S * min(listeners, len(self._pages))
        return min(_SPREAD_MOST_S, max(rendered, min(_SENT_S, _SPREAD_S * listeners)))


def figure_texts(live: dict[str, Any]) -> dict[str, str]:
    """Write the figures of each arm: "arm@version/figure" -> text."""
    return {
        f"{each['arm']}@{each['version']}/{name}": text
        for each in live["arms"]
        for name, text in {
            "rate": number(float(f"{each['requests_per_s']:.3g}")),
            "errors": number(each["errors"]),
            "missing": number(each["missing"]),
            "p50": milliseconds(each["p50_ms"]),
            "p99": milliseconds(each["p99_ms"]),
        }.items()
    }


def is_topic(name: str) -> bool:
    """Whether a text names a topic."""
    return _TOPIC.match(name) is not None


@dataclass(frozen=True, slots=True)
class Key:
    """All that the content of a page follows from. has_forms: whether its viewers signed in, so that it shows forms."""

    address: str
    workspace: str
    grants: tuple[Grant, ...]
    has_forms: bool


class Renderings:
    """Contents of pages as they were rendered last, for all streams of this process.

    app: the gateway's application, which renders them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._made: LRUCache[Key, tuple[str, asyncio.Task[str | None]]] = LRUCache(_RENDERINGS_KEPT)
        self.count = 0

    async def get(self, key: Key, version: str, authorization: bytes, client: str) -> str | None:
        """Get a page's content as JSON, rendered at a version of its topics or later; None if it cannot be shown.

        authorization: header of one who may see it. client: address that the viewer asks from, for the audit.
        """
        known = self._made.get(key)
        if known is None or known[0] != version:
            known = (
                version,
                asyncio.get_running_loop().create_task(self._render(key, authorization, client)),
            )
            self._made[key] = known
        return await asyncio.shield(known[1])  # one viewer who leaves takes nothing from the others

    async def _render(self, key: Key, authorization: bytes, client: str) -> str | None:
        self.count += 1
        transport = httpx.ASGITransport(
            self._part(_SharedSession() if key.has_forms else None),
            raise_app_exceptions=False,
            client=(client, 0),
        )
        headers = [(b"authorization", authorization), (WORKSPACE_HEADERS[0].encode(), key.workspace.encode())]
        try:
            async with (
                asyncio.timeout(_RENDER_S),
                httpx.AsyncClient(transport=transport, base_url="http://console") as http,
            ):
                answer = await http.get(key.address, headers=headers)
        except TimeoutError:
            return None
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        return json.dumps(answer.text) if answer.status_code == httpx.codes.OK and is_page else None

    def _part(self, session: _SharedSession | None) -> ASGIApp:
        async def asked(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app({**scope, "toque.session": session, PART: True}, receive, send)

        return asked


class _SharedSession:
    """Session of all viewers of a content, whose proof of forms is replaced by that of each."""

    csrf = _CSRF


class OpenPage:
    """Page that a viewer has open.

    request: of the stream that follows it, as it was admitted. address: path and query of the page. csrf: gives the proof of the
    viewer's forms; None if there is no session any more, empty without forms.
    """

    def __init__(
        self,
        request: Request,
        renderings: Renderings,
        address: str,
        *,
        workspace: str,
        csrf: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._request, self._renderings, self._csrf = request, renderings, csrf
        self.address, self.workspace = address, workspace

    async def show(self, version: str) -> str | None:
        """Get the page's content as JSON, at a version of its topics or later.

        None: it must be asked for, which tells the viewer why, as when the session ended or the token was revoked.
        """
        authorization = header(self._request, "authorization") or b""
        admission: Admission = self._request.app.state.admission
        csrf = await self._csrf()
        if csrf is None:
            return None
        try:
            principal = await admission.identify(authorization)
        except NotAdmitted:
            return None
        key = Key(self.address, self.workspace, principal.grants, bool(csrf))
        text = await self._renderings.get(key, version, authorization, client_of(self._request))
        return None if text is None else text.replace(_CSRF, csrf)
