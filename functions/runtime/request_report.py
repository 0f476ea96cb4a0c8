"""Report of this process's store requests: added to the day's counts in Redis now and then, for `toque costs`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, NamedTuple

from redis import Redis, RedisError

from registry.store.requests import REQUESTS, Operation, RequestCounts

EVERY_S = 60.0
KEPT_S = 400 * 24 * 3600
_KEY = "toque:store-requests:"
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
            pipe.execute()
        self._reported = now


def read_reports(redis_url: str) -> Iterator[ReportedRequests]:
    """Read the reported requests of all days. Raises: RedisError."""
    with Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2) as client:
        keys: Any = sorted(client.scan_iter(match=f"{_KEY}*", count=1000))
        for key in keys:
            fields: Any = client.hgetall(key)
            for field, number in sorted(fields.items()):
                role, operation, part = field.decode().split(" ", 2)
                yield ReportedRequests(key.decode().removeprefix(_KEY), role, operation, part, int(number))


@cache
def report_requests(redis_url: str | None, role: str) -> None:
    """Report this process's requests every minute from now on, in a thread; without Redis they are not reported."""
    if redis_url is None:
        return
    report = RequestReport(Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2), role)
    threading.Thread(target=_repeat, args=(report,), name="request-report", daemon=True).start()


def _repeat(report: RequestReport) -> None:
    waiting = threading.Event()
    while not waiting.wait(EVERY_S):
        try:
            report.send(datetime.now(UTC).date())
        except (RedisError, OSError) as error:
            _logger.info("store requests are reported later: %s", error)
