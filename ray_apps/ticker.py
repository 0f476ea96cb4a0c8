"""The ticker: a few times a second it fires due schedules, delivers events and runs what the ledger holds.

It has no memory of its own. Any number may run: a tick fires once and an invocation has one result, whoever
attends to them; a lease lets one do the work and the others wait.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray_apps.lease import Lease

if TYPE_CHECKING:
    from ray.serve import Application

INTERVAL_S = 0.25
DRAIN_EVERY_S = 10.0  # each drain is a commit: more often makes the tables slow to read
QUIET_S = 30.0  # the same complaint is logged this often
_logger = logging.getLogger(__name__)

Round = Callable[[], object]


class Ticker:
    """Goes through its rounds again and again while it leads.

    prepare: makes the rounds, what is done each time, by name; called once, in the ticker's thread, and again if
    it fails. leads: whether this ticker has the lead; interval_s: from one beginning to the next.
    """

    def __init__(
        self,
        prepare: Callable[[], Mapping[str, Round]],
        *,
        leads: Callable[[], bool],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._prepare = prepare
        self._rounds: Mapping[str, Round] | None = None
        self._leads = leads
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._complained: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self.turns = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it still goes round."""
        return self._thread.is_alive()

    def turn(self) -> None:
        """Every round once, if it leads; what fails in one keeps none of the others from happening."""
        if self._rounds is None:
            self._guarded("prepare", self._make_ready)
        if self._rounds is not None and self._guarded("lease", self._leads):
            for name, work in self._rounds.items():
                self._guarded(name, work)
            self.turns += 1

    def _make_ready(self) -> None:
        self._rounds = self._prepare()

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            self.turn()
            self._stop.wait(max(0.0, self._interval_s - (time.monotonic() - begun)))

    def _guarded(self, name: str, work: Round) -> object:
        try:
            return work()
        except Exception:
            now = time.monotonic()
            if now - self._complained.get(name, float("-inf")) > QUIET_S:
                self._complained[name] = now
                _logger.exception("%s: this round failed; it is tried again", name)
            return None


class TickerReplica:
    """The platform's tickers on Serve: one for what is due, one that drains the prediction log.

    It imports every function first, in its own thread, so that deploying it does not wait. Unhealthy, and so
    replaced, when a thread has ended.
    """

    def __init__(self) -> None:
        from functions.runtime.context import context_of  # late: only a replica needs it

        self._context = context_of(os.environ)
        lease = Lease(self._context.store, "ticker", holder=f"{os.uname().nodename}/{os.getpid()}")
        self._due = Ticker(self._due_rounds, leads=lease.held)
        self._drain = Ticker(self._drain_rounds, leads=lambda: lease.leads, interval_s=DRAIN_EVERY_S)
        self._due.start()
        self._drain.start()

    def check_health(self) -> None:
        """Called by Serve. Raises: RuntimeError if a ticker has ended."""
        if not (self._due.alive and self._drain.alive):
            raise RuntimeError("a ticker's thread has ended; its log says why")

    def turns(self) -> int:
        """How often what is due was looked at."""
        return self._due.turns

    def __del__(self) -> None:
        """Stop when Serve lets go of the replica."""
        self._due.stop()
        self._drain.stop()

    def _due_rounds(self) -> dict[str, Round]:
        from functions.runtime.durable.invocation import run_pending
        from functions.runtime.triggers import events, schedule  # late: as above
        from ray_apps.discovery import discover_gently

        discover_gently(self._context.project)
        return {
            "schedules": lambda: schedule.run_due(self._context),
            "events": lambda: events.run_events(self._context),
            "invocations": lambda: run_pending(self._context),
        }

    def _drain_rounds(self) -> dict[str, Round]:
        from functions.prediction_log import default_wal_root, drain  # late: as above

        store, redis_url = self._context.store, self._context.redis_url
        if redis_url is None:
            return {}
        return {"drain": lambda: drain(store, redis_url, wal_root=default_wal_root(store.url))}


def application(options: dict[str, Any] | None = None) -> Application:
    """The Serve application of the ticker; it has no route.

    options: passed to the deployment's `options`, such as num_replicas.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    chosen: dict[str, Any] = {"name": "ticker", "ray_actor_options": {"num_cpus": 0}} | (options or {})
    deployment: Any = serve.deployment(TickerReplica, **chosen)
    found: Application = deployment.bind()
    return found
