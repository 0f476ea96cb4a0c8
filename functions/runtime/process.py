"""Entry of a process of the platform: from here on its log lines, traces, series and requests to the store are seen.

Requests are added to the day's counts in Redis now and then, for `toque invocations costs`. Processes that train lower their CPU priority,
so that serving on the same machine keeps its latency.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.clusters.telemetry import metrics, set_up
from toque.functions.runtime.context import Context, set_up_worker
from toque.functions.runtime.declaration import NICENESS
from toque.functions.runtime.receipt import Total, summed
from toque.functions.runtime.secret import redact
from toque.registry.errors import Forbidden
from toque.registry.store import private_folder, temporary_folder
from toque.registry.store.requests import REQUESTS, WRITES, Operation, RequestCounts

ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
AUTOGROUP = Path("/proc/self/autogroup")
RETRY_FOR_S, RETRY_EVERY_S = 30.0, 0.1  # Linux accepts one such write per 0.1 s, from all processes together
EVERY_S = 60.0  # between reports
KEPT_S = 400 * 24 * 3600  # of a day's counts
_KEY = "toque:{store-requests}:"  # braces: one slot of a Redis Cluster
_DAYS = f"{_KEY}days"
_logger = logging.getLogger(__name__)


def enter_process(
    role: str, *, store_url: str, environment: Mapping[str, str], redis_url: str | None = None, name: str = ""
) -> None:
    """Set up what is seen of this process: log lines, traces, series, and with Redis its requests to the store. Idempotent.

    role: which kind of process it is, like "gateway"; name: of which one of them, as for a predictor its model.
    store_url: the platform's.
    """
    named = f"{role}/{name}" if name else role
    set_up(named, environment, masks=(redact,))
    _write_series(role, store_url, environment)
    report_requests(redis_url, named)


def enter_worker(used: Context) -> None:
    """Set up what is seen of a process that runs functions within a context. Idempotent."""
    set_up_worker()
    if metrics.folder_of_process() is None:
        _write_series("function", used.platform_url, os.environ)


def metrics_folder(store_url: str, environment: Mapping[str, str]) -> Path:
    """Find the folder of this node's series, the same for all processes of a platform.

    By default it is in this user's temporary folder, as it belongs to the node and not to the store.
    Raises: Forbidden if another user made it first.
    """
    chosen = environment.get("TOQUE_METRICS_FOLDER")
    if chosen:
        return private_folder(Path(chosen))
    return temporary_folder(f"metrics-{hashlib.sha256(store_url.encode()).hexdigest()[:16]}")


def _write_series(role: str, store_url: str, environment: Mapping[str, str]) -> None:
    """Write series to the node's folder; without one the process works, and is not seen."""
    try:
        metrics.keep_series(role, metrics_folder(store_url, environment))
    except (Forbidden, OSError) as error:
        _logger.warning("series of this process are lost: %s", error)


@cache
def lower_priority() -> None:
    """Lower the CPU priority of this process and of those that it starts; later calls do nothing.

    Where Linux shares CPUs among sessions first (autogroups), niceness counts within a session only. A worker
    of Ray shares the session of the serving processes and would use up their share. So the process moves to a
    session of its own and gives that its niceness. A session's leader stays; so does a process that may not
    move, which is logged as a warning.
    """
    niceness = os.nice(NICENESS)
    if os.getsid(0) == os.getpid() or not autogroups_enabled():
        return
    try:
        _leave_session()
        _renice_session(niceness)
    except OSError as error:
        _logger.warning("niceness %d does not count against other sessions: %s", niceness, error)


def autogroups_enabled() -> bool:
    """Whether this kernel shares CPUs among sessions first."""
    with suppress(OSError):
        return ENABLED.read_text().strip() == "1" and os.access(AUTOGROUP, os.W_OK)
    return False


def _leave_session() -> None:
    """Move this process to a new session. Raises: OSError if that is not allowed."""
    leads_group = os.getpgrp() == os.getpid()
    if leads_group:  # the leader of a group has to leave it first, and leads one again a moment later
        os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()


def _renice_session(niceness: int) -> None:
    """Set the niceness of this process's autogroup. Raises: OSError if the kernel refuses it."""
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_EVERY_S)
        else:
            return


class ReportedRequests(NamedTuple):
    """Requests of one process role on one day: by operation, to one part of the store."""

    day: str
    role: str
    operation: str
    part: str
    requests: int


class RequestReport:
    """Adds what a process has counted since its last report to the day's counts; Redis away, the next report adds it.

    role: which kind of process it is, like "ticker".
    """

    def __init__(self, client: Any, role: str, *, counts: RequestCounts = REQUESTS) -> None:
        self._client, self._role, self._counts = client, role, counts
        self._reported: Mapping[tuple[Operation, str], int] = {}

    def send(self, day: date) -> None:
        """Add what is new to the counts of a day. Raises: RedisError; what it could not send belongs to the next report."""
        now = self._counts.by_part()
        new = {each: number - self._reported.get(each, 0) for each, number in now.items()}
        key = f"{_KEY}{day.isoformat()}"
        pipe = self._client.pipeline(transaction=True)
        for (operation, part), number in new.items():
            if number:
                pipe.hincrby(key, f"{self._role} {operation} {part}", number)
        if len(pipe):
            pipe.expire(key, KEPT_S)
            pipe.sadd(_DAYS, day.isoformat())
            pipe.execute()
        self._reported = now


def read_reports(redis_url: str) -> Iterator[ReportedRequests]:
    """Read the reported requests of the days that are kept. Raises: RedisError."""
    client = open_redis(redis_url)
    try:
        days: list[str] = sorted(day.decode() for day in client.smembers(_DAYS))
        for day in days:
            fields: dict[bytes, bytes] = client.hgetall(f"{_KEY}{day}")
            if not fields:
                client.srem(_DAYS, day)
            for field, number in sorted(fields.items()):
                role, operation, part = field.decode().split(" ", 2)
                yield ReportedRequests(day, role, operation, part, int(number))
    finally:
        client.close()


def platform_totals(redis_url: str) -> list[Total]:
    """Sum the requests that the platform's processes reported, by role and day, as rows of the costs.

    Raises: RedisError.
    """
    nothing = {"invocations": 0, "attempts": 0, "queue_s": 0.0, "run_s": 0.0, "cpu_s": 0.0, "gpu_s": 0.0}
    return summed(
        Total(function=f"({each.role})", day=each.day, caller="platform", **nothing).model_copy(
            update={"store_writes" if each.operation in WRITES else "store_reads": each.requests}
        )
        for each in read_reports(redis_url)
        if each.operation != "delete"
    )


@cache
def report_requests(redis_url: str | None, role: str) -> None:
    """Report this process's requests every minute from now on, in a thread; without Redis they are not reported."""
    if redis_url is None:
        return
    report = RequestReport(open_redis(redis_url, patience_s=0.0), role)
    threading.Thread(target=_repeat, args=(report,), name="request-report", daemon=True).start()


def _repeat(report: RequestReport) -> None:
    waiting = threading.Event()
    while not waiting.wait(EVERY_S):
        try:
            report.send(datetime.now(UTC).date())
        except (RedisError, OSError) as error:
            _logger.info("store requests are reported later: %s", error)


__all__ = ["enter_process", "enter_worker", "lower_priority", "metrics_folder"]
