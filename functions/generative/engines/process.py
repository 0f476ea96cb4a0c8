"""A supervised engine: started, known to be ready by a real answer, watched, and started anew when it dies or hangs.

Requests wait for its slots by service tier, and within a tier in the order in which they came. Embeddings are asked
for one text at a time where it makes no others rightly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from toque.functions.generative.engines.engine import (
    MODEL_NAME,
    Engine,
    EngineDown,
    EngineSpec,
    RunningAdapters,
)
from toque.registry import SERVICE_TIERS, ServiceTier

MOST_WAITING: Final = 256
AHEAD_S: Final = 60.0
"""How much earlier a request of a tier counts as come than one of the tier below: the longest that it may overtake by."""
_LONGEST_RETRY_AFTER_S: Final = 60.0
_LAST_HELD_WEIGHT: Final = 0.2
"""Of the last slot that was given back, in the average of how long they are held."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 30.0
_LONG_LIVED_S = 60.0
"""An engine that lived longer than this starts anew at once when it dies."""
_STARTS: Final = 3
"""Starts that failed one after the other, from which on nobody waits: the weights are spoilt, or there is no memory for them."""
_TAIL_BYTES: Final = 4_096  # of the log, which say why it ended
_OK: Final = 200
_JSON_HEADERS: Final = {"content-type": "application/json"}
_CHILD: Final = str(Path(__file__).with_name("child.py"))
_PROBES: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "generate": ("/v1/completions", {"prompt": "1", "max_tokens": 1, "temperature": 0}, "choices"),
    "embed": ("/v1/embeddings", {"input": "1"}, "data"),
}
"""By task: the path of a small request, its body, and the field of the answer that has what was made."""
_log = logging.getLogger("ray.serve")


class Patience:
    """How long an engine may take: to start, and to say that it lives; `check_s` is between two such questions."""

    def __init__(self, *, start_s: float = 300.0, hung_s: float = 30.0, check_s: float = 2.0) -> None:
        self.start_s, self.hung_s, self.check_s = start_s, hung_s, check_s


class EngineProcess:
    """Process of an engine for one spec, and the task that keeps it alive; of one event loop.

    log: file that gets what the engine prints. client: a session that has the engine's key, which is new for each supervisor,
    since others on this machine reach the port too. embedding: held by who asks for the embedding of a text, where the engine makes one
    at a time. slots: of which each generating request takes one before it is sent; most_waiting: for one. no_tools: why tools of a
    request would not reach the model, None: they do. vocabulary: number of its token ids, None: unknown. adapters: those that it loads while it runs, None: it loads none. environment: of
    the process, whole, but for what the engine needs beside it and the key; None: that of this process.
    idle_s: without a use, after which it ends until the next one; 0: it never does. restarts: how often it was started again after a fault.
    """

    def __init__(
        self,
        engine: Engine,
        spec: EngineSpec,
        log: Path,
        *,
        environment: dict[str, str] | None = None,
        patience: Patience | None = None,
        most_waiting: int = MOST_WAITING,
        idle_s: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.spec = engine, spec
        self._log, self._patience, self._clock = log, patience or Patience(), clock
        key = secrets.token_urlsafe(32)
        given = os.environ if environment is None else environment
        self._environment = {**engine.variables, **given, engine.key_variable: key}
        self.base = ""
        self.pid: int | None = None
        self.no_tools: str | None = None
        self.vocabulary: int | None = None
        self.embedding = asyncio.Lock()
        self.slots = SlotQueue(spec.settings.slots, most_waiting=most_waiting)
        self.restarts = 0
        self.starts_s: list[float] = []
        self._ready, self._hopeless = asyncio.Event(), asyncio.Event()
        self._fault = f"{engine.name} has not started yet"
        self._process: asyncio.subprocess.Process | None = None
        self._idle_s, self._users, self._idle_since = idle_s, 0, clock()
        self._used = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.client = aiohttp.ClientSession(
            # llama.cpp may close a kept connection just as the next request is sent, which is no engine's failure.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(None),
            headers={"authorization": f"Bearer {key}"},
        )
        self.adapters = None if engine.adapters is None else RunningAdapters(engine.adapters, self.client)
        if self.adapters is not None and spec.adapter is not None:
            self.adapters.hold(engine.model_name(spec), spec.adapter)

    def start(self) -> None:
        """Start the engine and keep it alive from now on; returns before it is ready."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    @property
    def is_ready(self) -> bool:
        """Whether it has answered since it was last started."""
        return self._ready.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether it was not used for so long that it has ended, or does so now."""
        return bool(self._idle_s) and not self._users and self._clock() - self._idle_since > self._idle_s

    def begin_use(self) -> None:
        """Have the engine run until `end_use`, which is called once for each use."""
        self._users += 1
        self._used.set()

    def end_use(self) -> None:
        """End a use; after the last one the engine counts as idle."""
        self._users -= 1
        self._idle_since = self._clock()
        if not self._users:
            self._used.clear()

    async def ready(self, within_s: float) -> None:
        """Wait until the engine answers.

        Raises: EngineDown, with the reason, if it does not in time, or at once while start after start fails.
        """
        if self._ready.is_set():
            return
        waits = [asyncio.ensure_future(each.wait()) for each in (self._ready, self._hopeless)]
        try:
            await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if not self._ready.is_set():
            raise EngineDown(self._fault)

    async def close(self) -> None:
        """End the engine and its supervisor."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._end()
        await self.client.close()

    async def _keep(self) -> None:
        """Start the engine whenever it is needed and not there; a fault is told to those who wait, and tried again later."""
        backoff_s, failed_starts = 0.0, 0
        while True:
            begin = self._clock()
            try:
                await self._start()
                failed_starts = 0
                self._hopeless.clear()
                self.starts_s.append(self._clock() - begin)
                await self._watch()
                self._fault = f"{self.engine.name} was idle, and is being started for the next request"
                self._ready.clear()
                await self._end()
                await self._used.wait()
                continue
            except Exception as error:  # noqa: BLE001  # whatever it is, requests need an engine
                self._fault = f"{self.engine.name} is being started anew: {error}"
                failed_starts += not self._ready.is_set()
                if failed_starts >= _STARTS:
                    self._hopeless.set()
            self.restarts += 1
            self._ready.clear()
            _log.warning("engine of %s: %s", self.spec.weights, self._fault)
            await self._end()
            lived_long = self._clock() - begin > _LONG_LIVED_S
            backoff_s = 0.0 if lived_long else min(_LONGEST_BACKOFF_S, max(_FIRST_BACKOFF_S, 2 * backoff_s))
            await asyncio.sleep(backoff_s)

    async def _start(self) -> None:
        port = _free_port()
        self.base = f"http://127.0.0.1:{port}"
        line = self.engine.command(self.spec, port)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", _CHILD, str(os.getpid()), *line, stdin=asyncio.subprocess.DEVNULL,
                stdout=output, stderr=output, env=self._environment, start_new_session=True,
                cwd=self._log.parent,  # not the project's: engines would import its `kernels` for Hugging Face's
            )  # fmt: skip
        self.pid = self._process.pid
        until = self._clock() + self._patience.start_s
        while not await self._answers():
            if self._process.returncode is not None:
                raise EngineDown(f"it ended with status {self._process.returncode}: {self._tail()}")
            if self._clock() > until:
                raise EngineDown(
                    f"it did not answer within start_s={self._patience.start_s:g}: {self._tail()}"
                )
            await asyncio.sleep(0.05)
        self.no_tools = await self.engine.no_tools(self.client, self.base, self.spec)
        self.vocabulary = await self.engine.vocabulary(self.client, self.base, self.spec)
        if self.adapters is not None:
            await self.adapters.started_anew(self.base)
        self._ready.set()

    async def _answers(self) -> bool:
        """Whether the engine makes a token, or an embedding, which needs everything that a request needs."""
        path, asked, answered = _PROBES[self.spec.settings.task]
        asked = {"model": MODEL_NAME, **asked}
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=self._patience.hung_s)
            async with self.client.post(f"{self.base}{path}", json=asked, timeout=timeout) as answer:
                return answer.status == _OK and bool((await answer.json()).get(answered))
        return False

    async def _watch(self) -> None:
        """Return once the engine is idle. Raises: EngineDown once it has ended, or does not say that it lives."""
        process = self._process
        assert process is not None  # noqa: S101  # it was started above
        ended = asyncio.get_running_loop().create_task(process.wait())
        try:
            while True:
                await asyncio.wait({ended}, timeout=self._patience.check_s)
                if ended.done():
                    raise EngineDown(f"it ended with status {ended.result()}: {self._tail()}")
                if self.is_idle:
                    return
                await self._check_alive()
        finally:
            ended.cancel()

    async def _check_alive(self) -> None:
        """Ask the loop that computes. Raises: EngineDown if it does not answer in time."""
        timeout = aiohttp.ClientTimeout(total=self._patience.hung_s)
        try:
            async with self.client.get(f"{self.base}{self.engine.alive_path}", timeout=timeout) as answer:
                await answer.read()
        except TimeoutError:
            raise EngineDown(f"it hangs: no sign of life for hung_s={self._patience.hung_s:g}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDown(f"it takes no requests: {error}") from error

    async def _end(self) -> None:
        process, self._process, self.pid = self._process, None, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group, and keeps nothing that could be lost
        await process.wait()

    def _tail(self) -> str:
        """Read the last line that the engine printed."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            return lines[-1][:300] if lines else ""
        return ""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class QueueFull(Exception):  # noqa: N818  # an answer to the caller, who may try again
    """As many requests wait for the engine as may. retry_after_s: when about so many have had their slot."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Slot:
    """One request's slot of an engine, until it is released."""

    __slots__ = ("_begin_s", "_queue")

    def __init__(self, queue: SlotQueue, begin_s: float) -> None:
        self._queue: SlotQueue | None = queue
        self._begin_s = begin_s

    def release(self) -> None:
        """Give the slot to the next request; later calls do nothing."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.given_back(self._begin_s)


class _Waiter:
    __slots__ = ("given", "tier", "turn")

    def __init__(self, turn: tuple[float, int], tier: ServiceTier, given: asyncio.Future[None]) -> None:
        self.turn, self.tier, self.given = turn, tier, given


class SlotQueue:
    """Gives out the slots of one engine; of one event loop.

    A request of a higher tier overtakes those of the tier below that came up to `AHEAD_S` before it, and no others, so that none waits
    for ever. slots: requests that the engine computes at once. most_waiting: beyond it the newest of the lowest tier is refused. clock:
    monotonic seconds.
    """

    def __init__(self, slots: int, *, most_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._free, self._most, self._clock = slots, slots, most_waiting, clock
        self._waiting: list[_Waiter] = []
        """In the order of their turns."""
        self._number, self._held_s = 0, 0.0

    def waiting(self, tier: ServiceTier) -> int:
        """Count the requests of a tier that wait."""
        return sum(each.tier == tier for each in list(self._waiting))

    async def take(self, tier: ServiceTier) -> Slot:
        """Wait until the request has a slot. Raises: QueueFull, at once or when one of a higher tier comes."""
        if self._free:  # then nobody waits
            self._free -= 1
            return Slot(self, self._clock())
        waiter = self._enqueue(tier)
        try:
            await waiter.given
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.given.cancelled() and waiter.given.exception() is None:
                self._pass_on()  # it was given one just as its caller left
            raise
        return Slot(self, self._clock())

    def given_back(self, begin_s: float) -> None:
        """Take a slot back that was held since then, and give it to the next request."""
        held_s = self._clock() - begin_s
        self._held_s += _LAST_HELD_WEIGHT * (held_s - self._held_s) if self._held_s else held_s
        self._pass_on()

    def _enqueue(self, tier: ServiceTier) -> _Waiter:
        rank = SERVICE_TIERS.index(tier)
        if len(self._waiting) >= self._most:
            self._make_room(tier)
        self._number += 1
        turn = self._clock() - AHEAD_S * rank, self._number
        waiter = _Waiter(turn, tier, asyncio.get_running_loop().create_future())
        insort(self._waiting, waiter, key=lambda each: each.turn)
        return waiter

    def _make_room(self, tier: ServiceTier) -> None:
        """Refuse the newest of the lowest tier that is below this one. Raises: QueueFull if there is none."""
        rank = SERVICE_TIERS.index(tier)
        lowest = min(rank, *(SERVICE_TIERS.index(each.tier) for each in self._waiting))
        refusal = QueueFull(
            f"{len(self._waiting)} requests wait for this model's engine, as many as may, and this one is the newest of the lowest "
            f"service_tier ({SERVICE_TIERS[lowest]}); send it later",
            retry_after_s=min(
                _LONGEST_RETRY_AFTER_S, max(1.0, self._held_s * len(self._waiting) / self._slots)
            ),
        )
        if lowest == rank:
            raise refusal
        below = (each for each in self._waiting if each.tier == SERVICE_TIERS[lowest])
        refused = max(below, key=lambda each: each.turn)
        self._waiting.remove(refused)
        if not refused.given.done():  # else its caller has left
            refused.given.set_exception(refusal)

    def _pass_on(self) -> None:
        while self._waiting:
            given = self._waiting.pop(0).given
            if not given.done():  # else its caller has left
                given.set_result(None)
                return
        self._free += 1


async def ask_embeddings(process: EngineProcess, asked: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
    """Ask for the embeddings of `input`; returns the status, and the document of all texts, or what the engine said instead.

    asked: body of `POST /v1/embeddings`, whose `input` is a list of texts or of the token ids of each; without a model that of the
    weights. Raises: aiohttp.ClientError.
    """
    if process.engine.embedding_bounds(process.spec).together:
        return await _post(process, asked)
    found: list[dict[str, Any]] = []
    for text in asked["input"]:
        async with process.embedding:
            status, document = await _post(process, asked | {"input": text})
        if not isinstance(document, dict):
            return status, document
        found.append(document)
    return _OK, _joined(found) if found else {"object": "list", "data": []}


async def _post(process: EngineProcess, asked: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
    body = orjson.dumps({"model": MODEL_NAME, **asked})
    async with process.client.post(
        f"{process.base}/v1/embeddings", data=body, headers=_JSON_HEADERS
    ) as answer:
        content = await answer.read()
        return answer.status, orjson.loads(content) if answer.status == _OK else content


def _joined(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the documents of single texts into that of all."""
    data = [each["data"][0] | {"index": number} for number, each in enumerate(documents)]
    names = {name for each in documents for name in each.get("usage") or {}}
    usage = {
        name: sum((each.get("usage") or {}).get(name) or 0 for each in documents) for name in sorted(names)
    }
    return documents[0] | {"data": data, "usage": usage}


__all__ = ["AHEAD_S", "EngineProcess", "Patience", "QueueFull", "Slot", "SlotQueue", "ask_embeddings"]
