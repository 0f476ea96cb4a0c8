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
QUIET_S = 30.0  # the same complaint is logged this often
_logger = logging.getLogger(__name__)

Round = Callable[[], object]


class Ticker:
    """Goes through its rounds again and again while it leads.

    rounds: what is done each time, by name; leads: whether this ticker has the lead; interval_s: from one
    beginning to the next.
    """

    def __init__(
        self, rounds: Mapping[str, Round], *, leads: Callable[[], bool], interval_s: float = INTERVAL_S
    ) -> None:
        self._rounds = dict(rounds)
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
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it still goes round."""
        return self._thread.is_alive()

    def turn(self) -> None:
        """Every round once, if it leads; what fails in one keeps none of the others from happening."""
        if self._guarded("lease", self._leads):
            for name, work in self._rounds.items():
                self._guarded(name, work)
        self.turns += 1

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


def platform_rounds(environment: Mapping[str, str]) -> tuple[dict[str, Round], Lease]:
    """The rounds of the platform that `environment` names, and the lease on them."""
    from functions.runtime import catalog  # late: only a replica needs them
    from functions.runtime.context import context_of
    from functions.runtime.invocation import run_pending

    context = context_of(environment)
    catalog.discover(project=context.project)
    rounds: dict[str, Round] = {
        "invocations": lambda: run_pending(context),
    }
    return rounds, Lease(context.store, "ticker", holder=f"{os.uname().nodename}/{os.getpid()}")


class TickerReplica:
    """A ticker on Serve; unhealthy, and so replaced, when its thread has ended."""

    def __init__(self) -> None:
        rounds, lease = platform_rounds(os.environ)
        self._ticker = Ticker(rounds, leads=lease.held)
        self._ticker.start()

    def check_health(self) -> None:
        """Called by Serve. Raises: RuntimeError if the ticker has ended."""
        if not self._ticker.alive:
            raise RuntimeError("the ticker's thread has ended; its log says why")

    def turns(self) -> int:
        """How often it has gone round."""
        return self._ticker.turns

    def __del__(self) -> None:
        """Stop when Serve lets go of the replica."""
        self._ticker.stop()


def application(options: dict[str, Any] | None = None) -> Application:
    """The Serve application of the ticker; it has no route.

    options: passed to the deployment's `options`, such as num_replicas.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    chosen: dict[str, Any] = {"name": "ticker", "ray_actor_options": {"num_cpus": 0}} | (options or {})
    deployment: Any = serve.deployment(TickerReplica, **chosen)
    found: Application = deployment.bind()
    return found
