"""Report of this process's store requests: added to the day's counts in Redis now and then, for `toque costs`."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, NamedTuple

from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.functions.runtime.receipt import Total
from toque.registry.store.requests import REQUESTS, WRITES, Operation, RequestCounts

EVERY_S = 60.0
KEPT_S = 400 * 24 * 3600
_KEY = "toque:{store-requests}:"  # braces: one slot of a Redis Cluster
_DAYS = f"{_KEY}days"
_logger = logging.getLogger(__name__)


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
    sums: dict[tuple[str, str], Counter[str]] = {}
    for each in read_reports(redis_url):
        kind = "writes" if each.operation in WRITES else "reads"
        if each.operation != "delete":
            sums.setdefault((each.role, each.day), Counter())[kind] += each.requests
    nothing = {"invocations": 0, "attempts": 0, "queue_s": 0.0, "run_s": 0.0, "cpu_s": 0.0, "gpu_s": 0.0}
    return [
        Total(
            function=f"({role})", day=day, caller="platform",
            store_reads=count["reads"], store_writes=count["writes"], **nothing,
        )
        for (role, day), count in sorted(sums.items())
    ]  # fmt: skip


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
