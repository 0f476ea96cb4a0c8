"""Many small models in one replica: loaded when first asked for, evicted least recently used.

All bookkeeping happens on the event loop; journals are read in one thread and versions loaded in another, one
model at a time, so that a crowd of cold models delays the hot ones by no more than one load's share of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_apps.predictor.http.endpoint import Answer, Request
from ray_apps.predictor.http.model_endpoint import ModelEndpoint
from ray_apps.predictor.protocol.errors import NotFound, NotReady, Overloaded, PredictorError
from ray_apps.predictor.versions.engine import Engine
from ray_apps.predictor.versions.loaded import OVERHEAD_BYTES, memory_of

__all__ = ["Pool"]

_RETRY_S = 0.005
_log = logging.getLogger("ray.serve")


class _Resident:
    """A model in memory, or on its way there. users: requests that need it now; loading: done once it is loaded."""

    def __init__(self, endpoint: ModelEndpoint) -> None:
        self.endpoint = endpoint
        self.users = 0
        self.reloading = False
        self.loading: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """Its versions."""
        return self.endpoint.predictor.engine

    @property
    def idle(self) -> bool:
        """Whether nobody needs it now."""
        return not self.users and not self.reloading and self.loading is None

    @property
    def size_bytes(self) -> int:
        """The memory it takes, as estimated."""
        loaded = self.engine.size_bytes
        return loaded + OVERHEAD_BYTES if loaded else 0

    @property
    def needed_bytes(self) -> int:
        """The memory that it takes more once what is due is loaded."""
        due = sum(memory_of(record) for record in self.engine.due())
        return due if self.size_bytes else due + OVERHEAD_BYTES


class Pool:
    """The models of one replica. Belongs to one event loop.

    furnish: a model's door, nothing loaded and no thread started. limit_bytes: of memory for all models, as
    estimated from their files. pinned: models that are loaded first and never evicted. poll_s: how often the
    journals of the models in memory are read. max_waiting: so many requests may wait for models to be loaded.
    patience_s: how long a load waits for room while models are in use.
    """

    def __init__(
        self,
        make_endpoint: Callable[[str], ModelEndpoint],
        *,
        limit_bytes: int,
        pinned: Collection[str] = (),
        poll_s: float = 0.25,
        max_waiting: int = 640,
        patience_s: float = 2.0,
    ) -> None:
        self._make_endpoint, self._limit_bytes, self._pinned = make_endpoint, limit_bytes, frozenset(pinned)
        self._poll_s, self._max_waiting, self._patience_s = poll_s, max_waiting, patience_s
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._loading = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pool-follow")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="pool-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.loads = 0
        self.evictions = 0

    def start(self) -> None:
        """Follow the journals from now on, and load what is pinned; needs a running loop. Again: nothing."""
        if self._tasks:
            return
        self._spawn(self._follow())
        for name in sorted(self._pinned):
            self._find(name)

    async def answer(self, name: str, request: Request) -> Answer:
        """Answer a request whose path is below a model's name, which is loaded first if it is not here.

        Raises: NotFound for a model that the registry does not have; Overloaded if too many requests wait for
        models; NotReady if the limit leaves no room, or the store does not answer; and what the model's door raises.
        """
        resident = self._find(name)
        resident.users += 1
        try:
            if resident.loading is not None:
                await self._wait_until_loaded(resident.loading)
            return await resident.endpoint.answer(request)
        finally:
            resident.users -= 1

    @property
    def size_bytes(self) -> int:
        """Memory of all models here, as estimated."""
        return _size(self._residents)

    def index(self) -> list[dict[str, str]]:
        """The versions of the models that are here, as entries of the repository index."""
        here = [resident for resident in self._residents.values() if resident.loading is None]
        return [entry for resident in here for entry in resident.endpoint.index()]

    def describe(self) -> dict[str, Any]:
        """The counts, and the models that are here, least recently used first."""
        return {
            "models": [name for name, resident in self._residents.items() if resident.loading is None],
            "size_bytes": self.size_bytes,
            "limit_bytes": self._limit_bytes,
            "loads": self.loads,
            "evictions": self.evictions,
            "waiting": self._waiting,
        }

    async def close(self) -> None:
        """Stop following, and end every model."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._residents):
            await self._residents.pop(name).endpoint.close()
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _find(self, name: str) -> _Resident:
        """The model, as the most recently used one; its loading is begun if it is not here."""
        resident = self._residents.get(name)
        if (resident is None or resident.loading is not None) and self._waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._waiting} requests wait for models to be loaded; send again after a moment"
            )
        if resident is None:
            resident = self._residents[name] = _Resident(self._make_endpoint(name))
            resident.loading = self._spawn(self._open(name, resident))
        else:
            self._residents.move_to_end(name)
        return resident

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, NotReady):
            _log.warning("%s", fault)
        elif fault is not None and not isinstance(fault, PredictorError):
            _log.error("work in the pool failed", exc_info=fault)

    async def _wait_until_loaded(self, loading: asyncio.Task[None]) -> None:
        self._waiting += 1
        try:
            await asyncio.shield(loading)
        finally:
            self._waiting -= 1

    async def _open(self, name: str, resident: _Resident) -> None:
        """Load a model that was asked for; one that cannot be is forgotten."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._reader, resident.engine.follow_once)
            if resident.engine.view is None:
                raise NotReady(f"model {name!r}: the store does not answer; try again soon")  # noqa: TRY301 - one way out
            if not resident.engine.view.versions:
                raise NotFound(f"no model {name!r} with a version; see GET /models")  # noqa: TRY301 - the same
            await self._load(resident)
        except BaseException:
            del self._residents[name]
            raise
        resident.loading = None

    async def _load(self, resident: _Resident) -> None:
        """Load what a model's policy names, after making room for it; one model at a time."""
        async with self._loading:
            await self._make_room(resident.needed_bytes, resident)
            await asyncio.get_running_loop().run_in_executor(self._loader, resident.engine.load_wanted)
            self.loads += 1

    async def _make_room(self, needed: int, keep: _Resident | None = None) -> None:
        """Evict as many models as it takes, least recently used first; models in use are waited for a moment.

        Raises: NotReady, and evicts none, if all that may go are not enough.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while (over := self.size_bytes + needed - self._limit_bytes) > 0:
            others = {
                n: one for n, one in self._residents.items() if one is not keep and n not in self._pinned
            }
            idle = {name: one for name, one in others.items() if one.idle}
            if over <= _size(idle):
                await self._evict(idle, over)
            elif over > _size(others) or loop.time() >= until:
                raise NotReady(
                    f"memory: {needed} bytes are needed, the pool's limit is {self._limit_bytes} and models in use "
                    "or pinned have the rest; try again soon, or raise memory_limit_bytes"
                )
            else:
                await asyncio.sleep(_RETRY_S)

    async def _evict(self, idle: Mapping[str, _Resident], over: int) -> None:
        ended = []
        for name, one in idle.items():
            if over <= 0:
                break
            over -= one.size_bytes
            del self._residents[name]
            self.evictions += 1
            ended.append(one)
        for one in ended:  # out of the way first: nobody finds a model whose end has begun
            await one.endpoint.close()

    async def _follow(self) -> None:
        """Read the journals of the models that are here, again and again; load what they newly name."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._poll_s)
            with contextlib.suppress(
                NotReady
            ):  # a version that a request asked for by number was no load of ours
                await self._make_room(0)
            here = [one for one in self._residents.values() if one.loading is None]
            for one in await loop.run_in_executor(self._reader, _look, here):
                if not one.reloading:
                    one.reloading = True
                    self._spawn(self._reload(one))

    async def _reload(self, resident: _Resident) -> None:
        try:
            if self._residents.get(resident.engine.model) is resident:  # else it was evicted meanwhile
                await self._load(resident)
        except NotReady as refusal:
            _log.warning("%s: its new version waits: %s", resident.engine.model, refusal)
        finally:
            resident.reloading = False


def _size(residents: Mapping[str, _Resident]) -> int:
    return sum(one.size_bytes for one in residents.values())


def _look(residents: Iterable[_Resident]) -> list[_Resident]:
    """Read their journals; returns those that have something to load."""
    found = []
    for one in residents:
        try:
            one.engine.follow_once()
        except Exception:  # noqa: BLE001 - one model's fault must not end the following of all
            _log.exception("%s: following the policy failed, trying again", one.engine.model)
        if one.engine.due():
            found.append(one)
    return found
