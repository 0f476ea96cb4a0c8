"""Many small models in one replica: loaded at their first request, evicted least recently used.

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

from prometheus_client import Counter, Gauge

from toque.clusters.telemetry.metrics import Rising, flush_regularly
from toque.ray_apps.predictor.http.endpoint import Answer, Endpoint, Request
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference import live
from toque.ray_apps.predictor.inference.live import ModelSeries
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.protocol.errors import NotFound, NotReady, Overloaded, PredictorError
from toque.ray_apps.predictor.versions.batching import Batcher
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.versions.loaded import OVERHEAD_BYTES, memory_of

_RETRY_S = 0.005
_log = logging.getLogger("ray.serve")
_POOL = ("workspace",)
LOADS = Counter("toque_pool_loads", "Models that a request or a new version had loaded into a pool.", _POOL)
EVICTIONS = Counter("toque_pool_evictions", "Models that left a pool to make room.", _POOL)
WAITING = Gauge(
    "toque_pool_waiting", "Requests that wait for their model.", _POOL, multiprocess_mode="livesum"
)
BYTES = Gauge(
    "toque_pool_bytes", "Estimated memory of the models in a pool.", _POOL, multiprocess_mode="livesum"
)


class _Resident:
    """A model in memory, or being loaded. users: requests that need it now; loading: its load, None when done."""

    def __init__(self, endpoint: ModelEndpoint) -> None:
        self.endpoint = endpoint
        self.users = 0
        self.reloading = False
        self.loading: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine with the model's versions."""
        return self.endpoint.predictor.engine

    @property
    def idle(self) -> bool:
        """Whether no request needs the model and no load is under way, so that it may be evicted."""
        return not self.users and not self.reloading and self.loading is None

    @property
    def size_bytes(self) -> int:
        """Estimated memory that the model takes."""
        loaded = self.engine.size_bytes
        return loaded + OVERHEAD_BYTES if loaded else 0

    @property
    def needed_bytes(self) -> int:
        """Estimated memory that the model takes in addition once its due versions are loaded."""
        due = sum(memory_of(record) for record in self.engine.due())
        return due if self.size_bytes else due + OVERHEAD_BYTES


class Pool:
    """An LRU cache of models in one replica. Belongs to one event loop.

    make_endpoint: makes a model's endpoint, with no version loaded and no thread started. limit_bytes: of memory for
    all models, as estimated from their files. pinned: models that are loaded first and never evicted. poll_s: how
    often it looks which journals of the models in memory may have changed. max_waiting: requests that may wait for models to be loaded.
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
        """Start following the journals, and load the pinned models; needs a running loop. Idempotent."""
        if self._tasks:
            return
        self._spawn(self._follow())
        for name in sorted(self._pinned):
            self._find(name)

    async def answer(self, name: str, request: Request) -> Answer:
        """Answer a request whose path is below a model's name; the model is loaded first if necessary.

        Raises: NotFound for a model that the registry does not have; Overloaded if too many requests wait for
        models; NotReady if the limit leaves no room, or the store does not answer; what the model's endpoint raises.
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
    def waiting(self) -> int:
        """Number of requests that wait for their model."""
        return self._waiting

    @property
    def size_bytes(self) -> int:
        """Estimated memory of all models in the pool."""
        return _size(self._residents)

    def index(self) -> list[dict[str, str]]:
        """The versions of the loaded models, as entries of the repository index."""
        here = [resident for resident in self._residents.values() if resident.loading is None]
        return [entry for resident in here for entry in resident.endpoint.index()]

    def describe(self) -> dict[str, Any]:
        """Counts of the pool, and its loaded models, least recently used first."""
        return {
            "models": [name for name, resident in self._residents.items() if resident.loading is None],
            "size_bytes": self.size_bytes,
            "limit_bytes": self._limit_bytes,
            "loads": self.loads,
            "evictions": self.evictions,
            "waiting": self._waiting,
        }

    async def close(self) -> None:
        """Stop following the journals, and close every model."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._residents):
            await self._residents.pop(name).endpoint.close()
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _find(self, name: str) -> _Resident:
        """Get a model and mark it most recently used; starts to load it if necessary."""
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
        task.add_done_callback(self._on_task_end)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
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
        """Load a requested model; if that fails, it leaves the pool."""
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
        """Evict as many models as necessary, least recently used first; models in use are waited for a moment.

        Raises: NotReady, without an eviction, if all evictable models together are not enough.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while (over := self.size_bytes + needed - self._limit_bytes) > 0:
            others = {
                n: resident
                for n, resident in self._residents.items()
                if resident is not keep and n not in self._pinned
            }
            idle = {name: resident for name, resident in others.items() if resident.idle}
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
        for name, resident in idle.items():
            if over <= 0:
                break
            over -= resident.size_bytes
            del self._residents[name]
            self.evictions += 1
            ended.append(resident)
        for resident in ended:  # after all have left the pool, so that no request finds a closing model
            await resident.endpoint.close()

    async def _follow(self) -> None:
        """Read the journals of the loaded models again and again, and load the versions that they newly name."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._poll_s)
            with contextlib.suppress(NotReady):  # room taken by versions that were requested by number
                await self._make_room(0)
            here = [resident for resident in self._residents.values() if resident.loading is None]
            for resident in await loop.run_in_executor(self._reader, _with_new_versions, here):
                if not resident.reloading:
                    resident.reloading = True
                    self._spawn(self._reload(resident))

    async def _reload(self, resident: _Resident) -> None:
        try:
            if self._residents.get(resident.engine.model) is resident:  # else it was evicted meanwhile
                await self._load(resident)
        except NotReady as refusal:
            _log.warning("%s: its new version waits: %s", resident.engine.model, refusal)
        finally:
            resident.reloading = False


def _size(residents: Mapping[str, _Resident]) -> int:
    return sum(resident.size_bytes for resident in residents.values())


def _with_new_versions(residents: Iterable[_Resident]) -> list[_Resident]:
    """Read the journals that may have changed; returns the models with versions to load."""
    found = []
    for resident in residents:
        try:
            resident.engine.follow_if_due()
        except Exception:  # noqa: BLE001 - one model's fault must not end the following of all
            _log.exception("%s: following the policy failed, trying again", resident.engine.model)
        if resident.engine.due():
            found.append(resident)
    return found


def connect(endpoint: ModelEndpoint) -> None:
    """Have the series of a model follow what its predictor counts."""
    predictor = endpoint.predictor
    found = predictor.series
    if found is None:
        return
    connect_door(endpoint, found)
    shadows, recorder, engine = predictor.shadows, predictor.recorder, predictor.engine
    for outcome in ("scored", "failed", "dropped"):
        found.follow(live.SHADOWS, _reader(shadows, outcome), outcome)
    for outcome in ("written", "dropped", "failures", "failures_dropped"):
        found.follow(live.LOGGED, _reader(recorder, outcome), outcome)
    found.follow(live.LOADS, _reader(engine, "loads"), "loaded")
    found.follow(live.LOADS, _reader(engine, "failed_loads"), "failed")
    found.follow(live.LOAD_SECONDS, _reader(engine, "load_s"))
    found.show(live.LOADED, lambda: len(engine.loaded))
    found.follow(live.BATCHES, lambda: sum(batcher.batches for batcher in _batchers(predictor)))
    found.follow(live.BATCH_ROWS, lambda: sum(batcher.rows for batcher in _batchers(predictor)))
    found.follow(live.BATCH_WAIT, lambda: sum(batcher.waited_s for batcher in _batchers(predictor)))
    found.show(live.QUEUED, lambda: sum(batcher.waiting for batcher in _batchers(predictor)))


def connect_door(endpoint: Endpoint, found: ModelSeries | None) -> None:
    """Have series, if there are any, follow the responses of an endpoint that Serve calls."""
    if found is None:
        return
    found.responded(endpoint.statuses)
    found.follow(live.INDIRECT, _reader(endpoint, "indirect"))
    found.show(live.IN_FLIGHT, _reader(endpoint, "in_flight"))


class PoolSeries:
    """Series of a pool of models. workspace: whose models it holds."""

    def __init__(self, pool: Pool, workspace: str) -> None:
        self._pool = pool
        self._loads, self._evictions = Rising(LOADS.labels(workspace)), Rising(EVICTIONS.labels(workspace))
        self._waiting, self._bytes = WAITING.labels(workspace), BYTES.labels(workspace)
        flush_regularly(self)

    def flush(self) -> None:
        """Move the pool's counts to the series."""
        self._loads.to(self._pool.loads)
        self._evictions.to(self._pool.evictions)
        self._waiting.set(self._pool.waiting)
        self._bytes.set(self._pool.size_bytes)


def _batchers(predictor: Predictor) -> list[Batcher]:
    """List what makes batches for the loaded versions of a model."""
    versions = [predictor.engine.find(number) for number in predictor.engine.loaded]
    return [version.batcher for version in versions if version is not None and version.batcher is not None]


def _reader(owner: object, name: str) -> Callable[[], float]:
    return lambda: float(getattr(owner, name))


__all__ = ["Pool", "PoolSeries", "connect", "connect_door"]
