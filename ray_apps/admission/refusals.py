"""Log of refused requests, gathered in memory and written to the store every few seconds.

Equal refusals are one record with a count; those of a caller, and those without a valid token together, are a bounded number of
records, so that a flood of garbage costs little memory and few writes. A refusal of somebody known is written within a second, or
within ten while the bound is passed, and the last ones when the process ends, by itself or by Serve; only a kill takes them with it.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from toque.registry import Clock, ObjectStore, RegistryError, utc_now
from toque.registry.access.audit import REFUSALS, REFUSALS_TIME
from toque.registry.times import to_text

FLUSH_KNOWN_S = 1.0
FLUSH_UNKNOWN_S = 10.0
MAX_KNOWN = 1_000
MAX_UNKNOWN = 32
MAX_OF_CALLER = 8
_OTHERS = "others"
_MAX_TEXT = 300
_logger = logging.getLogger(__name__)
_started: list[RefusalLog] = []  # they last as long as the process, as their threads do


class _Kind(NamedTuple):
    who: str | None
    status: int
    what: str
    workspace: str | None
    client: str


@dataclass(slots=True)
class _Tally:
    why: str
    count: int
    first_at: datetime
    last_at: datetime


class RefusalLog:
    """Gathers the refusals of one process and writes them to the platform's store; safe for threads.

    door: name of the door, such as "gateway". clock: gives their times.
    """

    def __init__(
        self,
        store: ObjectStore,
        door: str,
        *,
        clock: Clock = utc_now,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store, self._door, self._clock, self._sleep = store, door, clock, sleep
        self._tallies: dict[_Kind, _Tally] = {}
        self._unknown = 0
        self._of_callers: Counter[str] = Counter()
        self._flooding: frozenset[str] = (
            frozenset()
        )  # callers that passed their bound before the last writing
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def record(
        self, *, who: str | None, status: int, what: str, workspace: str | None, client: str, why: str
    ) -> None:
        """Note a refusal; a thread writes it soon after."""
        now = self._clock()
        with self._lock:
            kind = self._bounded(_Kind(who, status, what[:_MAX_TEXT], workspace and workspace[:64], client))
            tally = self._tallies.get(kind)
            if tally is None:
                self._tallies[kind] = _Tally(why[:_MAX_TEXT], 1, now, now)
                self._count(kind)
            else:
                tally.count += 1
                tally.last_at = now
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="refusals", daemon=True)
                self._thread.start()
                _started.append(self)
        if who is not None and who not in self._flooding:
            self._wake.set()

    def flush(self) -> None:
        """Write what was gathered; if the store does not answer, it is kept for the next time."""
        with self._writing:  # at exit what the thread is writing is waited for, or it would be cut off
            with self._lock:
                tallies, self._tallies, self._unknown = self._tallies, {}, 0
                flooding = (who for who, kinds in self._of_callers.items() if kinds >= MAX_OF_CALLER)
                self._flooding, self._of_callers = frozenset(flooding), Counter()
            if tallies:
                self._write(tallies)

    def _write(self, tallies: dict[_Kind, _Tally]) -> None:
        now = self._clock()
        records = [
            kind._asdict()
            | asdict(tally)
            | {"first_at": to_text(tally.first_at), "last_at": to_text(tally.last_at)}
            for kind, tally in tallies.items()
        ]
        key = f"{REFUSALS}{now.astimezone(UTC).strftime(REFUSALS_TIME)}-{uuid.uuid4().hex[:8]}.json"
        try:
            self._store.create(key, json.dumps({"door": self._door, "refusals": records}).encode())
        except RegistryError as error:
            _logger.warning("refusals at %s could not be written, they are kept: %s", self._door, error)
            self._restore(tallies)

    def _bounded(self, kind: _Kind) -> _Kind:
        """Return `kind`, or the one that stands for all others once there are too many."""
        if kind in self._tallies:
            return kind
        if kind.who is None and self._unknown >= MAX_UNKNOWN:
            return _Kind(None, kind.status, _OTHERS, None, _OTHERS)
        if kind.who is not None and self._of_callers[kind.who] >= MAX_OF_CALLER:
            return _Kind(kind.who, kind.status, _OTHERS, None, _OTHERS)
        if len(self._tallies) >= MAX_KNOWN:
            return _Kind(kind.who and _OTHERS, kind.status, _OTHERS, None, _OTHERS)
        return kind

    def _count(self, kind: _Kind) -> None:
        if kind.who is None:
            self._unknown += 1
        else:
            self._of_callers[kind.who] += 1

    def _restore(self, tallies: dict[_Kind, _Tally]) -> None:
        with self._lock:
            for kind, tally in tallies.items():
                later = self._tallies.get(self._bounded(kind))
                if later is None:
                    self._tallies[self._bounded(kind)] = tally
                    self._count(kind)
                else:
                    later.count += tally.count
                    later.first_at = min(later.first_at, tally.first_at)

    def _run(self) -> None:
        while True:
            if self._wake.wait(FLUSH_UNKNOWN_S):
                self._sleep(FLUSH_KNOWN_S)  # for what else comes in the same moment
                self._wake.clear()
            self.flush()


def flush_refusals() -> None:
    """Write the refusals that this process holds; called when a replica stops, and at exit."""
    for log in tuple(_started):
        log.flush()


@asynccontextmanager
async def write_refusals_at_end(_application: object) -> AsyncIterator[None]:
    """Lifespan of a door's application: Serve kills a replica after it, so that nothing at exit would run."""
    yield
    await asyncio.get_running_loop().run_in_executor(None, flush_refusals)


atexit.register(flush_refusals)
