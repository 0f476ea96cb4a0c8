"""Faults of a store and of Redis: any request of a verb is refused, lost, late or forbidden, or the process dies at it.

`Faults` numbers the requests that pass through a `FaultyStore`, or through Redis within `faulty_redis`, and lets one of them suffer. A
`Verb` is a public verb with the world that it needs and the invariant that holds afterwards; `failing_cells` runs it once undisturbed to
count its requests, then once for each request and each fault, every time in a world of its own:

    SUBMIT = Verb("submit", prepare=World, act=lambda world: world.submit(), check=lambda world: world.check_accepted())

    @pytest.mark.parametrize("verb", VERBS, ids=str)
    def test_a_fault_at_any_request_leaves_nothing_half(verb: Verb[World], tmp_path: Path) -> None:
        matrix = run_cells(verb, lambda number: FolderStore(tmp_path / str(number)))
        assert not matrix.failures, matrix
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

import redis
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.table import TableMerger, TableOptimizer
from redis.client import Pipeline
from redis.exceptions import NoPermissionError

import toque.featurestore.streams.table
import toque.functions.prediction_log.writing.drain
import toque.registry.store.tables.table
from toque.registry.errors import Forbidden, RegistryError, Unavailable
from toque.registry.store import FolderStore, ObjectStore
from toque.registry.store.tables.table import Table

W = TypeVar("W")
T = TypeVar("T")


class Fault(StrEnum):
    """What happens to a request. Each but a refusal leaves its caller without an answer."""

    UNAVAILABLE_BEFORE = "unavailable before it took effect"
    UNAVAILABLE_AFTER = "unavailable after it took effect"
    TIMED_OUT = "timed out, and takes effect after the next request"
    FORBIDDEN = "forbidden"
    KILLED_BEFORE = "killed before it took effect"
    KILLED_AFTER = "killed after it took effect"


KILLS = frozenset({Fault.KILLED_BEFORE, Fault.KILLED_AFTER})
_OF_WRITES = frozenset({Fault.UNAVAILABLE_AFTER, Fault.TIMED_OUT, Fault.KILLED_AFTER})
READS = frozenset(
    {"get", "find", "find_range", "find_aged", "find_modified_at", "list", "scan", "now", "download"}
)
WRITES = frozenset({"create", "put", "delete", "upload"})
_REDIS_READS = frozenset(
    {
        "GET",
        "MGET",
        "EXISTS",
        "HGET",
        "HMGET",
        "HGETALL",
        "XLEN",
        "XRANGE",
        "XREAD",
        "XINFO",
        "INFO",
        "SMEMBERS",
        "TTL",
        "PTTL",
        "TYPE",
        "SCAN",
        "PING",
        "TIME",
    }
)


class KilledError(BaseException):
    """Stands for the end of the process; no Exception, as nothing of a killed process handles it."""


class Request(NamedTuple):
    """Request to a store or to Redis: its verb or command, the key, and whether it may change something."""

    name: str
    key: str
    writes: bool


_PUBLISHER = "live-counts"  # sends each second while its process lives: no request of the verb under test


class Faults:
    """Numbers requests from 1, and lets one of them suffer a fault; after a kill no request of the process gets anywhere.

    requests: of the last block of `inject`, in the order in which threads made them; struck: the one that suffered.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.struck: Request | None = None
        self._fault: Fault | None = None
        self._at = 0
        self._matches: Callable[[Request], bool] = lambda _: True
        self._counting = self._dead = False
        self._late: Callable[[], object] | None = None
        self._lock = threading.RLock()

    @contextmanager
    def inject(
        self,
        fault: Fault | None = None,
        at: int = 0,
        *,
        matches: Callable[[Request], bool] = lambda _: True,
    ) -> Iterator[Faults]:
        """Number the requests of the block that `matches` accepts; number `at` suffers `fault`, if there is one.

        Afterwards everything answers again, and a request that was late has taken effect.
        """
        self.requests, self.struck, self._fault, self._at, self._matches = [], None, fault, at, matches
        self._counting = True
        try:
            yield self
        finally:
            self._counting = self._dead = False
            self._fault = None
            self._take_late_effect()

    def run(self, request: Request, perform: Callable[[], T], errors: Errors) -> T:
        """Perform a request, or let it suffer. Raises: what `errors` says, KilledError, or what the request itself raises."""
        if not self._counting or threading.current_thread().name == _PUBLISHER:
            return perform()
        with self._lock:
            if self._dead:
                raise KilledError
            late, self._late = self._late, None
            fault = self._next_fault(request)
        if fault is None:
            try:
                return perform()
            finally:
                if late is not None:
                    self._late = late
                    self._take_late_effect()
        return self._suffer(fault, request, perform, errors)

    def _next_fault(self, request: Request) -> Fault | None:
        if not self._matches(request):
            return None
        self.requests.append(request)
        if self._fault is None or len(self.requests) != self._at:
            return None
        self.struck = request
        self._dead = self._fault in KILLS
        return self._fault

    def _suffer(self, fault: Fault, request: Request, perform: Callable[[], T], errors: Errors) -> T:
        name = f"{request.name} {request.key}"
        if fault in {Fault.UNAVAILABLE_AFTER, Fault.KILLED_AFTER}:
            perform()
        if fault in KILLS:
            raise KilledError(name)
        if fault is Fault.FORBIDDEN:
            raise errors.forbidden(f"{name}: injected: no permission")
        if fault is Fault.TIMED_OUT:
            if request.writes:
                self._late = perform
            raise errors.timed_out(f"{name}: injected: no answer in time")
        raise errors.unavailable(f"{name}: injected: 503")

    def _take_late_effect(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            with suppress(
                RegistryError, redis.RedisError, DeltaError
            ):  # nobody waits for its answer any more
                late()


class Errors(NamedTuple):
    """Errors by which a client of a store, or of Redis, reports faults."""

    unavailable: type[Exception]
    timed_out: type[Exception]
    forbidden: type[Exception]


STORE_ERRORS = Errors(Unavailable, Unavailable, Forbidden)
REDIS_ERRORS = Errors(redis.ConnectionError, redis.TimeoutError, NoPermissionError)


class FaultyStore:
    """Store whose requests pass through `faults`; everything else is the wrapped store's. Pickled, it is the wrapped one."""

    def __init__(self, store: ObjectStore, faults: Faults | None = None) -> None:
        self.store, self.faults = store, faults or Faults()

    def within(self, prefix: str) -> FaultyStore:
        """Open the part of the store below `prefix`, with the same faults."""
        return FaultyStore(self.store.within(prefix), self.faults)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copies and pickles, which ask before there is a store
            raise AttributeError(name)
        method = getattr(self.store, name)
        if name not in READS | WRITES:
            return method

        def request(*args: Any, **named: Any) -> Any:
            key = str(args[0]) if args else ""

            def perform() -> Any:
                answer = method(*args, **named)
                return (
                    iter(list(answer)) if name in {"list", "scan"} else answer
                )  # their requests are made now

            return self.faults.run(Request(name, key, name in WRITES), perform, STORE_ERRORS)

        return request

    def __reduce__(self) -> Any:
        return _itself, (self.store,)


class FragileStore(FolderStore):
    """Folder store, with tables, whose process dies before its write number `fatal`, counted from 1; 0: never. It may go on afterwards."""

    writes = 0
    fatal = 0

    def _write(self, write: Any, *arguments: Any) -> None:
        self.writes += 1
        if self.writes == self.fatal:
            raise KilledError
        write(*arguments)

    def create(self, key: str, data: bytes) -> None:
        self._write(super().create, key, data)

    def put(self, key: str, data: bytes) -> None:
        self._write(super().put, key, data)

    def delete(self, key: str) -> None:
        self._write(super().delete, key)


def _itself(store: ObjectStore) -> ObjectStore:
    return store


@contextmanager
def faulty_redis(faults: Faults) -> Iterator[None]:
    """Let every command and pipeline of this process's synchronous Redis clients pass through `faults`."""
    command, pipeline = redis.Redis.execute_command, Pipeline.execute

    def faulty_command(client: Any, *args: Any, **options: Any) -> Any:
        if isinstance(client, Pipeline):
            return command(client, *args, **options)
        name = str(args[0])
        key = str(args[1]) if len(args) > 1 else ""
        request = Request(name, key, name.partition(" ")[0].upper() not in _REDIS_READS)
        return faults.run(request, lambda: command(client, *args, **options), REDIS_ERRORS)

    def faulty_pipeline(client: Any, *args: Any, **options: Any) -> Any:
        stack = list(client.command_stack)

        def perform() -> Any:
            client.command_stack = stack
            return pipeline(client, *args, **options)

        return faults.run(Request("PIPELINE", f"{len(stack)} commands", writes=True), perform, REDIS_ERRORS)

    redis.Redis.execute_command, Pipeline.execute = faulty_command, faulty_pipeline  # type: ignore[method-assign]  # for the block
    try:
        yield
    finally:
        redis.Redis.execute_command, Pipeline.execute = command, pipeline  # type: ignore[method-assign]  # as above


_TABLE_WRITES: tuple[tuple[type, str], ...] = (
    (DeltaTable, "delete"),
    (DeltaTable, "vacuum"),
    (DeltaTable, "create_write_transaction"),
    (TableMerger, "execute"),
    (TableOptimizer, "compact"),
    (TableOptimizer, "z_order"),
)
_APPENDING = (
    toque.registry.store.tables.table,
    toque.functions.prediction_log.writing.drain,
    toque.featurestore.streams.table,
)


@contextmanager
def faulty_tables(faults: Faults) -> Iterator[None]:
    """Let the openings and commits of tables pass through `faults`: Delta's library makes its requests beside the store.

    A commit is one request, whatever Delta does for it: it is atomic, and what it wrote before is nobody's.
    """

    def passing(name: str, original: Callable[..., Any], *, writes: bool) -> Callable[..., Any]:
        def request(*args: Any, **named: Any) -> Any:
            table = getattr(args[0], "name", "") if args else ""
            return faults.run(Request(name, table, writes), lambda: original(*args, **named), STORE_ERRORS)

        return request

    places: list[tuple[Any, str, str, bool]] = [(Table, "_find", "table open", False)]
    places += [(module, "write_deltalake", "table write", True) for module in _APPENDING]
    places += [(owner, name, f"table {name}", True) for owner, name in _TABLE_WRITES]
    originals = [getattr(owner, name) for owner, name, _, _ in places]
    for (owner, name, shown, writes), original in zip(places, originals, strict=True):
        setattr(owner, name, passing(shown, original, writes=writes))
    try:
        yield
    finally:
        for (owner, name, _, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


@dataclass(frozen=True)
class Verb(Generic[W]):
    """Public verb that writes, in a world, with its invariant.

    prepare: makes the world on a store that answers; act: the verb, the only part that meets a fault; again: the same verb once more, for a
    caller that was told of a failure or whose process died, `act` by default; restart: replaces in the world what a killed process took with it;
    check: asserts that what was accepted has ended or is listed, nothing twice and nothing half. outcome: what is visible afterwards, which must
    be the same in every cell as without a fault. tolerated: errors that `act` may raise at a fault. close: ends what the world started.
    """

    name: str
    prepare: Callable[[FaultyStore], W]
    act: Callable[[W], object]
    check: Callable[[W], object] = lambda _: None
    again: Callable[[W], object] | None = None
    restart: Callable[[W], object] = lambda _: None
    tolerated: tuple[type[BaseException], ...] = (Unavailable, Forbidden, redis.RedisError, KilledError)
    outcome: Callable[[W], object] = lambda _: None
    close: Callable[[W], object] = lambda _: None

    def __str__(self) -> str:
        return self.name


@dataclass
class Matrix:
    """Outcome of a verb's cells: how many were run of how many, what failed in which, and how many of its requests may change something."""

    verb: str
    cells: int = 0
    all_cells: int = 0
    writes: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"  {cell}: {problem}" for cell, problem in self.failures.items()]
        return "\n".join(
            [f"{self.verb}: {len(self.failures)} of {self.cells} cells of the matrix fail", *lines]
        )


def run_cells(
    verb: Verb[W],
    new_store: Callable[[int], ObjectStore],
    *,
    faults: Sequence[Fault] = tuple(Fault),
    sample: int | None = None,
) -> Matrix:
    """Run a verb once for each of its requests and each fault, found by counting; every cell on a store of its own.

    new_store: makes the empty store of a cell of that number. A fault after the effect is for writes alone. sample: of so many cells,
    drawn by the verb's name, or of all.
    """
    matrix = Matrix(verb.name)
    requests, expected = _run_cell(verb, new_store(0), None, 0)
    cells = [
        (at, fault)
        for at, request in enumerate(requests, 1)
        for fault in faults
        if request.writes or fault not in _OF_WRITES
    ]
    matrix.all_cells, matrix.writes = len(cells), sum(request.writes for request in requests)
    if sample is not None and sample < len(cells):
        cells = sorted(random.Random(verb.name).sample(cells, sample))
    for at, fault in cells:
        request = requests[at - 1]
        matrix.cells += 1
        try:
            _, outcome = _run_cell(verb, new_store(matrix.cells), fault, at)
            assert outcome == expected, f"{outcome} instead of {expected}"
        except Exception as error:  # noqa: BLE001  # every cell is run, and all that fail are shown together
            cell = f"request {at} of {len(requests)} ({request.name} {request.key}) {fault}"
            matrix.failures[cell] = f"{type(error).__name__}: {error}"
    return matrix


def _run_cell(
    verb: Verb[W], store: ObjectStore, fault: Fault | None, at: int
) -> tuple[list[Request], object]:
    faulty = FaultyStore(store)
    world = verb.prepare(faulty)
    failure: BaseException | None = None
    try:
        with (
            faulty_redis(faulty.faults),
            faulty_tables(faulty.faults),
            faulty.faults.inject(fault, at) as faults,
        ):
            try:
                verb.act(world)
            except verb.tolerated as error:
                failure = error
            requests = list(faults.requests)
        if failure is not None and faults.struck is None:
            raise failure
        if fault in KILLS:
            verb.restart(world)
        if failure is not None:
            (verb.again or verb.act)(world)
        verb.check(world)
        return requests, verb.outcome(world)
    finally:
        verb.close(world)
