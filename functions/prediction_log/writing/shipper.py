"""Shipper that moves records from the write-ahead files to the stream, and confirms those that answers wait for.

Redis away: the files grow up to their bound and shipping goes on when it is back. One round trip confirms all that wait. Once a wait
was in vain, later ones end at once until Redis is reached again, so that Redis away costs one wait and not one for each request.
A record is on two nodes if it is in this node's file, and in a Redis elsewhere or in a replica. Whether Redis runs on this node is seen
by the addresses of the connection to it. They do not show it where an address stands for several machines, as a service of
Kubernetes does: keep Redis and the writers apart there.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.functions.prediction_log.errors import LogUnconfirmedError
from toque.functions.prediction_log.writing.lost_writers import adopt_all
from toque.functions.prediction_log.writing.series import WriterSeries
from toque.functions.prediction_log.writing.stream import Accepted, Stream
from toque.functions.prediction_log.writing.wal import Chunk, WriteAheadLog
from toque.registry.access import DEFAULT_WORKSPACE

_LEAST_RESERVED = 256  # more than one process answers between two shipments
_log = logging.getLogger(__name__)
_open: WeakSet[LogWriter] = WeakSet()
REPLICA_WAIT_S = 0.5


class LogWriter:
    """Writer of the durable log: `append` returns when the record survives this process; a thread ships it to Redis.

    root: the folder of the workspace's write-ahead files on this machine. kind: "predictions" or "labels".
    redis_url: where the stream is. workspace: whose records they are. poll_s: how often records are shipped that nobody
    waits for. two_nodes: records are confirmed only once they are on another node too. answers_first: whether records are
    answered that are not confirmed, so that this node may take some with it. confirm_s: the longest wait.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        redis_url: str,
        *,
        workspace: str = DEFAULT_WORKSPACE,
        limit_bytes: int = 1 << 30,
        segment_bytes: int = 1 << 20,
        fsync: bool = False,
        poll_s: float = 0.05,
        tidy_every_s: float = 5.0,
        two_nodes: bool = False,
        answers_first: bool = True,
        confirm_s: float = 1.0,
    ) -> None:
        self._wal = WriteAheadLog(
            root / kind, limit_bytes=limit_bytes, segment_bytes=segment_bytes, fsync=fsync
        )
        self.append = self._wal.append
        """Write one record durably and return its number. Raises: LogFullError."""
        self.extend = self._wal.extend
        """Write several records, all or none, and return the last number. Raises: LogFullError."""
        self._root, self._kind, self._workspace = root, kind, workspace
        self._poll_s, self._tidy_every_s, self._confirm_s = poll_s, tidy_every_s, confirm_s
        self._next_tidy = self._deadline = 0.0
        self._stop, self._wake = threading.Event(), threading.Event()
        self._awaited = False
        self._position = 0
        self._unsent: Chunk | None = None
        self._rotation = self._rotating = self._rotated_at = 0
        self._answers_first, self._busiest = answers_first, 0
        client = open_redis(
            redis_url, timeout_s=max(2.0, confirm_s), patience_s=0.0
        )  # the thread's rounds are its patience
        self._stream = Stream(client, kind, workspace=workspace)
        self._copies = CopyCheck(self._stream, self._wal.writer, two_nodes=two_nodes)
        self._confirmations = Confirmations(self._ship_now, timeout_s=confirm_s)
        self.confirmed = self._confirmations.wait
        """Wait until a record is confirmed, as mode and `two_nodes` say; False if it is not in time."""
        self._series = WriterSeries(self, workspace, kind)
        self._thread = threading.Thread(target=self._run, name=f"ship-{kind}", daemon=True)
        self._thread.start()
        _open.add(self)

    @property
    def writer(self) -> str:
        """Name of this writer, new for every process."""
        return self._wal.writer

    @property
    def written(self) -> int:
        """Number of records written so far."""
        return self._wal.last

    @property
    def shipped(self) -> int:
        """Number of the records, from the first on, that Redis has."""
        return self._position

    @property
    def waiting_bytes(self) -> int:
        """Size of the records in this writer's files that are not drained yet."""
        return self._wal.size_bytes

    @property
    def confirms(self) -> bool:
        """Whether records can be confirmed now, as far as is known."""
        return self._confirmations.available

    @property
    def why_unconfirmed(self) -> str:
        """What keeps records from being confirmed, for a message."""
        return self._copies.problem or f"Redis did not confirm the record in {self._confirm_s:g} s"

    def commit(self, payloads: Sequence[bytes]) -> int:
        """Write several records, all or none, and return the last number once Redis has confirmed them; blocks.

        Raises: LogFullError; LogUnconfirmedError if Redis does not confirm in time: they may arrive all the same.
        """
        if self.confirms and self._confirmations.wait_blocking(number := self.extend(payloads)):
            return number
        raise LogUnconfirmedError(f"{self._kind}: {self.why_unconfirmed}; send them again")

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ship what can be shipped in `timeout_s` and stop; the rest stays in the files for an adopter."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._series.close()
        self._wal.close()
        _open.discard(self)

    def _run(self) -> None:
        away = False
        while self._wait():
            try:
                if time.monotonic() >= self._next_tidy or not self.confirms:
                    self._report_alive()
                self._ship()
                self._tidy()
                away = False
            except (RedisError, OSError) as error:
                self._confirmations.fail()
                if not away:
                    _log.warning("%s: cannot ship, keeping records in the files: %s", self._kind, error)
                away = True
                self._stop.wait(min(0.5, 10 * self._poll_s))
        if self._position == self._wal.last:
            self._say_goodbye()

    def _wait(self) -> bool:
        """Wait for the next round; False once everything is shipped or the deadline has passed."""
        if not self._stop.is_set():
            self._wait_for_records()
            return True
        time.sleep(0.01)  # between two tries of the last shipment
        return self._position < self._wal.last and time.monotonic() < self._deadline

    def _wait_for_records(self) -> None:
        """Wait for a record that an answer waits for, or else for a record and then for those that follow it soon."""
        if self.confirms and self._position >= self._wal.last:
            self._wal.notify = self._wake.set
            if self._position >= self._wal.last:
                self._wake.wait(max(self._poll_s, self._next_tidy - time.monotonic()))
            self._wal.notify = None
        if not self._awaited and not self._stop.is_set():
            self._wake.clear()
            if not self._awaited and not self._stop.is_set():
                self._wake.wait(self._poll_s)
        self._awaited = False  # before the event: who comes between the two has the next round begin at once
        self._wake.clear()

    def _ship_now(self) -> None:
        self._awaited = True
        self._wake.set()

    def _report_alive(self) -> None:
        """Tell Redis that this writer lives, and learn how far it has the records; it may have lost some."""
        self._copies.look()
        there = self._stream.report_alive(
            self.writer, node=self._copies.node, reserved=self._reserved(self._wal.last)
        )
        if there < self._position:
            self._position, self._unsent = there, None
        if self._copies.reachable():
            self._confirmations.advance(there)
        else:
            self._confirmations.fail()

    def _say_goodbye(self) -> None:
        """Tell Redis that every record of this writer is there, so that nobody misses one."""
        try:
            self._stream.report_alive(self.writer, node=self._copies.node, reserved=self._position)
        except (RedisError, OSError) as error:
            _log.info("%s: closed without a goodbye: %s", self._kind, error)

    def _reserved(self, last: int) -> int:
        """Number of the last record that may be answered before Redis hears of this writer again."""
        return last + max(_LEAST_RESERVED, 4 * self._busiest) if self._answers_first else self._position

    def _ship(self) -> None:
        """Ship the records written by now; later ones wait for the next round."""
        goal = self._wal.last
        self._busiest = max(goal - self._position, self._busiest * 99 // 100)
        while self._position < goal:
            if self._unsent is None:
                self._unsent = self._wal.read_after(self._position)
            if self._unsent is None:
                return
            frames, _, last = self._unsent
            answer = self._stream.append(
                self.writer, frames, after=self._position, last=last,
                node=self._copies.node, reserved=self._reserved(last), replica_wait_s=self._copies.replica_wait_s(),
            )  # fmt: skip
            self._position, self._unsent = answer.last, None
            if not answer.added:
                self._report_alive()  # Redis lost records, and perhaps the writer's name
            if self._copies.enough(answer):
                self._confirmations.advance(answer.last)
            else:
                self._confirmations.fail()

    def _tidy(self) -> None:
        """Drop drained files and adopt those of dead writers, at most every few seconds."""
        if time.monotonic() < self._next_tidy:
            return
        self._next_tidy = time.monotonic() + self._tidy_every_s
        self._rotate()
        self._wal.forget(self._stream.drained(self.writer))
        self._report_rotation()
        adopt_all(self._root, self._stream.client, workspace=self._workspace)

    def _rotate(self) -> None:
        """Meet a new request to drop what the files hold: later records go to a file of their own."""
        asked = self._stream.rotation()
        if asked > self._rotating:
            self._rotating, self._rotated_at = asked, self._wal.rotate()

    def _report_rotation(self) -> None:
        if self._rotating > self._rotation and self._wal.oldest > self._rotated_at:
            self._stream.mark_rotated(self.writer, self._rotating)
            self._rotation = self._rotating


def close_writers(*, timeout_s: float = 5.0) -> None:
    """Close all writers of this process, which ships what they hold; called when a replica stops, and at exit."""
    deadline = time.monotonic() + timeout_s
    for writer in list(_open):
        writer.close(timeout_s=max(0.1, deadline - time.monotonic()))


atexit.register(close_writers)


class CopyCheck:
    """Whether the records of one writer have a copy on another node, by its connection to Redis.

    two_nodes: whether such a copy is asked for. node: name of this node, with its address as Redis sees it.
    problem: why the last record had no such copy; empty if it had.
    """

    def __init__(self, stream: Stream, writer: str, *, two_nodes: bool) -> None:
        self._stream, self._writer, self._two_nodes = stream, writer, two_nodes
        self._redis_is_here = False
        self.node = os.uname().nodename
        self.problem = ""

    def look(self) -> None:
        """Look at the connection to see where Redis is. Raises: redis.RedisError."""
        node, self._redis_is_here = self._connection()
        self.node = f"{os.uname().nodename} ({node})" if node else os.uname().nodename

    def replica_wait_s(self) -> float:
        """Return how long the next shipment waits for a replica of Redis; 0 where Redis itself is the other node."""
        if not self._two_nodes:
            return 0.0
        self.look()
        return REPLICA_WAIT_S if self._redis_is_here else 0.0

    def enough(self, answer: Accepted) -> bool:
        """Whether what was shipped is confirmed."""
        return self._judge(answer.replicas)

    def reachable(self) -> bool:
        """Whether the next shipment can be confirmed, as far as is known."""
        if not (self._two_nodes and self._redis_is_here):
            return self._judge(0)
        replication: Any = self._server().info("replication")
        return self._judge(sum(_is_online(each) for each in replication.values()))

    def _judge(self, replicas: int) -> bool:
        alone = self._two_nodes and self._redis_is_here and not replicas
        self.problem = "Redis runs on this node and no replica of it has the record" if alone else ""
        return not alone

    def _server(self) -> Any:
        return self._stream.server_of(self._stream.key(self._writer))

    def _connection(self) -> tuple[str, bool]:
        """Return this node's address towards Redis, and whether Redis is at the same one."""
        pool = self._server().connection_pool
        connection = pool.get_connection()
        try:
            sock: socket.socket | None = connection._sock  # noqa: SLF001  # there is no public way to its addresses
            if sock is None or sock.family == socket.AF_UNIX:
                return "", True
            here, there = sock.getsockname()[0], sock.getpeername()[0]
        finally:
            pool.release(connection)
        return here, here == there


def _is_online(replica: Any) -> bool:
    """Whether an entry of Redis's INFO is a replica that has the data; one that still copies them confirms nothing."""
    return isinstance(replica, dict) and replica.get("state") == "online"


class Confirmations:
    """Waits for the records of one writer to be confirmed, ended by its shipper.

    wake: has the shipper begin its next round now. timeout_s: the longest wait.
    """

    def __init__(self, wake: Callable[[], object], *, timeout_s: float) -> None:
        self._wake, self._timeout_s = wake, timeout_s
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, _Wait]] = deque()
        self._reached = 0
        self._away = False

    @property
    def available(self) -> bool:
        """Whether a wait has a chance: False from a wait in vain until Redis was reached again."""
        return not self._away

    async def wait(self, number: int) -> bool:
        """Wait until a record is confirmed; False if it is not in time, or cannot be now."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._begin(number, _LoopWait(loop, future)):
            return number <= self._reached
        timer = loop.call_later(self._timeout_s, self._expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    def wait_blocking(self, number: int) -> bool:
        """Wait as `wait` does, in a thread."""
        done = threading.Event()
        wait = _ThreadWait(done)
        if self._begin(number, wait) and not done.wait(self._timeout_s):
            self._away = True
        return number <= self._reached

    def advance(self, number: int) -> None:
        """Report that Redis was reached, and that it has the records up to `number`."""
        ended: list[_Wait] = []
        with self._lock:
            self._away = False
            self._reached = max(self._reached, number)
            while self._waiting and self._waiting[0][0] <= number:
                ended.append(self._waiting.popleft()[1])
        _end(ended, confirmed=True)

    def fail(self) -> None:
        """Report that Redis cannot confirm anything now: all waits end."""
        with self._lock:
            self._away = True
            ended = [wait for _, wait in self._waiting]
            self._waiting.clear()
        _end(ended, confirmed=False)

    def _begin(self, number: int, wait: _Wait) -> bool:
        """Have a wait ended later; False if the record is confirmed already, or cannot be now."""
        with self._lock:
            if self._away or number <= self._reached:
                return False
            self._waiting.append((number, wait))
        self._wake()
        return True

    def _expire(self, future: asyncio.Future[bool]) -> None:
        if not future.done():
            self._away = True
            future.set_result(False)


class _ThreadWait:
    """Wait of a thread, ended by setting its event."""

    loop = None

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def end(self, confirmed: bool) -> None:  # noqa: ARG002, FBT001  # as the other's
        self._done.set()


class _LoopWait:
    """Wait of a task on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[bool]) -> None:
        self.loop, self._future = loop, future

    def end(self, confirmed: bool) -> None:  # noqa: FBT001  # called by position, for many
        if not self._future.done():  # its caller may have left
            self._future.set_result(confirmed)


_Wait = _ThreadWait | _LoopWait


def _end(waits: list[_Wait], *, confirmed: bool) -> None:
    """End waits: one call into each event loop for all of its tasks."""
    by_loop: dict[Any, list[_Wait]] = {}
    for wait in waits:
        by_loop.setdefault(wait.loop, []).append(wait)
    for loop, those in by_loop.items():
        if loop is None:
            _end_each(those, confirmed)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_end_each, those, confirmed)


def _end_each(waits: list[_Wait], confirmed: bool) -> None:  # noqa: FBT001  # an event loop's callback
    for wait in waits:
        wait.end(confirmed)


__all__ = ["Confirmations", "CopyCheck", "LogWriter", "close_writers"]
