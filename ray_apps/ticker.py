"""The ticker: a few times a second it fires due schedules, delivers events and runs what the ledger holds.

It does so in every workspace, one after the other; one workspace's failure does not keep the others waiting.

A ticker keeps no state. Any number may run, as a schedule's tick fires once and an invocation has one result whichever
of them handles it; a lease elects the one that works while the others wait. Where Redis announces what changes, a round
without news makes no request to the store.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge

from toque.clusters.profile import apply_profile
from toque.clusters.telemetry.metrics import publish, withdraw
from toque.ray_apps.leader_lease import (
    REDIS_BEAT_S,
    Leadership,
    Lease,
    RedisLease,
)
from toque.registry.lease import STORE_BEAT_S, StoreLease

if TYPE_CHECKING:
    from ray.serve import Application

    from toque.functions.reflexes import Reflexes
    from toque.functions.runtime.context import Context

INTERVAL_S = 0.25
MEASURE_EVERY_S = 30.0
DRAIN_EVERY_S = 10.0  # each drain is a commit: more often makes the tables slow to read
REFLEX_EVERY_S = 10.0  # a bad release is pulled back within a minute of its first errors
SHOWN_S = 60.0  # a ticker that lost its lease shows what it measured last until another has measured: alerts must not clear by it
PREPARED_WITHIN_S = 60.0
HANGS_S = 120.0  # without a workspace's task done: a round may take longer, and another ticker's would be no shorter
QUIET_S = 30.0  # a task that keeps failing is logged this often
_logger = logging.getLogger(__name__)

PUBLISHED = "platform"
Task = Callable[[], object]
LEADER = Gauge(
    "toque_ticker_leader", "Tickers that lead: one, in a platform that works.", multiprocess_mode="livemax"
)
FAILURES = Counter("toque_ticker_failures", "Rounds of a ticker's task that failed.", ("task",))
SECONDS = Counter("toque_ticker_task_seconds", "Seconds that a ticker's task took in all.", ("task",))
LAST = Gauge(
    "toque_ticker_last_success_timestamp_seconds",
    "When a ticker's task last went well.",
    ("task",),
    multiprocess_mode="livemax",
)


class Ticker:
    """Runs its tasks in order, again and again, while it is the leader.

    prepare: makes the tasks by name; called once, in the ticker's thread, and again if it fails. is_leader: whether
    this ticker leads now; interval_s: from one start to the next.
    """

    def __init__(
        self,
        prepare: Callable[[], Mapping[str, Task]],
        *,
        is_leader: Callable[[], bool],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._prepare = prepare
        self._tasks: Mapping[str, Task] | None = None
        self._is_leader = is_leader
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._logged_at: dict[str, float] = {}
        self._begun: float | None = None
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self.ticks = 0

    def start(self) -> None:
        """Start the thread that runs the tasks."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the task that is running now."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def prepared(self) -> bool:
        """Whether the tasks are there, so that they run once this ticker leads."""
        return self._tasks is not None

    @property
    def alive(self) -> bool:
        """Whether the ticker's thread still runs."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """For how long the round that runs now has done nothing to its end, in seconds; 0 between rounds."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def note_progress(self) -> None:
        """Note that a part of the round is done: a round may be long, and hangs only where nothing in it ends."""
        if self._begun is not None:
            self._begun = time.monotonic()

    def tick(self) -> None:
        """Run every task once while this ticker leads; a task that fails does not keep the others from running."""
        if self._tasks is None:
            self._guarded("prepare", self._make_ready)
        for name, work in (self._tasks or {}).items():
            if not self._is_leader():  # asked again, as a task may take longer than a term
                return
            self._guarded(name, work)
            self.note_progress()
        if self._tasks:
            self.ticks += 1

    def _make_ready(self) -> None:
        self._tasks = self._prepare()

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = self._begun = time.monotonic()
            self.tick()
            self._begun = None
            self._stop.wait(max(0.0, self._interval_s - (time.monotonic() - begun)))

    def _guarded(self, name: str, work: Task) -> None:
        begun = time.perf_counter()
        try:
            work()
        except Exception:
            FAILURES.labels(name).inc()
            now = time.monotonic()
            if now - self._logged_at.get(name, float("-inf")) > QUIET_S:
                self._logged_at[name] = now
                _logger.exception("%s failed in this round; it is tried again", name)
            return
        SECONDS.labels(name).inc(time.perf_counter() - begun)
        LAST.labels(name).set_to_current_time()


class TickerReplica:
    """The platform's tickers on Serve: they run what is due, drain the prediction log, judge the last minutes, and measure.

    Functions are imported in the ticker's thread, so that deploying does not wait for them, unless another ticker leads: its
    successor in a new release is ready when it could lead. The replica is unhealthy, and so replaced, when a thread has ended.
    """

    def __init__(self) -> None:
        from toque.functions.runtime.changes import (
            journals_in,  # late: only a replica needs it
            watch_of,
        )
        from toque.functions.runtime.context import context_of
        from toque.functions.runtime.process import enter_process
        from toque.registry import Access

        apply_profile(os.environ)
        self._context = used = context_of(os.environ)
        tokens = watch_of(used.redis_url, journals_in(used.store, "access/journal"), every_s=1.0)
        self._access = Access(used.store, actor=used.actor, changed=tokens.due)
        self._in_workspace = cache(used.in_workspace)
        enter_process("ticker", store_url=used.platform_url, environment=os.environ, redis_url=used.redis_url)
        self._leadership = leadership_of(used)
        self._replaces = not self._leadership.is_free()
        self._led_at = float("-inf")
        self._due = Ticker(self._due_tasks, is_leader=self._leads)
        self._lease = Ticker(
            lambda: {"lease": lambda: keep_lead(self._leadership, self._due, _is_lost_here)},
            is_leader=lambda: True,
        )
        self._drain = Ticker(self._drain_tasks, is_leader=self._leads, interval_s=DRAIN_EVERY_S)
        self._reflexes = Ticker(self._reflex_tasks, is_leader=self._leads, interval_s=REFLEX_EVERY_S)
        self._measure = Ticker(
            self._measure_tasks, is_leader=self._leads_or_withdraws, interval_s=MEASURE_EVERY_S
        )
        for ticker in self._tickers:
            ticker.start()
        if self._replaces:
            wait_prepared(self._tickers, within_s=PREPARED_WITHIN_S)

    @property
    def _tickers(self) -> tuple[Ticker, ...]:
        return self._lease, self._due, self._drain, self._reflexes, self._measure

    def check_health(self) -> None:
        """Tell Serve whether the tickers run. Raises: RuntimeError if one has ended."""
        if not all(ticker.alive for ticker in self._tickers):
            raise RuntimeError("a ticker's thread has ended; its log says why")

    def ticks(self) -> int:
        """Number of rounds of the ticker that runs what is due."""
        return self._due.ticks

    def __del__(self) -> None:
        """Stop the tickers when Serve releases the replica, and let another lead at once, to go on with the runs that end with this process."""
        from toque.functions.runtime.durable.invocation import close_executors  # late: as above

        for ticker in self._tickers:
            ticker.stop()
        close_executors()
        withdraw(PUBLISHED)
        LEADER.set(0)
        self._leadership.release()

    def _due_tasks(self) -> dict[str, Task]:
        from toque.functions.runtime.durable.invocation import run_pending
        from toque.functions.runtime.triggers import events, schedule  # late: as above
        from toque.ray_apps.discovery import discover

        discover(self._context.projects, awaited=self._replaces)
        return {
            "schedules": lambda: self._in_each(schedule.run_due, done=self._due.note_progress),
            "events": lambda: self._in_each(events.run_events, done=self._due.note_progress),
            "invocations": lambda: self._in_each(run_pending, done=self._due.note_progress),
        }

    def _drain_tasks(self) -> dict[str, Task]:
        from toque.functions.prediction_log import drain_workspace  # late: as above

        if self._context.redis_url is None:
            return {}
        return {"drain": lambda: self._in_each(drain_workspace)}

    def _reflex_tasks(self) -> dict[str, Task]:
        from toque.functions.reflexes import reflexes_of  # late: as above

        known: dict[str, Reflexes | None] = {}

        def react(used: Context) -> None:
            if used.workspace not in known:
                known[used.workspace] = reflexes_of(used)
            found = known[used.workspace]
            if found is not None:
                found.tick()

        return {"reflexes": lambda: self._in_each(react)}

    def _measure_tasks(self) -> dict[str, Task]:
        import ray  # late: as above

        from toque.ray_apps.platform_series import PlatformSeries, ServeSeries

        serve = ServeSeries() if ray.is_initialized() else None
        series = PlatformSeries(self._context, self._access, self._in_workspace, serve=serve)
        return {"measure": lambda: publish(PUBLISHED, series.measure())}

    def _leads(self) -> bool:
        return self._leadership.is_leader

    def _leads_or_withdraws(self) -> bool:
        """Whether this ticker leads; one that has not for a while takes back what it published while it did."""
        now = time.monotonic()
        if self._leadership.is_leader:
            self._led_at = now
            return True
        if now - self._led_at > SHOWN_S:
            withdraw(PUBLISHED)
        return False

    def _in_each(self, work: Callable[[Context], object], *, done: Callable[[], None] = lambda: None) -> None:
        names = [workspace.name for workspace in self._access.known_workspaces()]
        run_in_each(names, lambda name: work(self._in_workspace(name)), done=done)


def run_in_each(
    workspaces: Iterable[str], work: Callable[[str], object], *, done: Callable[[], None] = lambda: None
) -> None:
    """Do `work` for every workspace, whichever fails; `done` is called after each.

    Raises: an ExceptionGroup of the failures, each with its workspace's name.
    """
    failed: list[Exception] = []
    for name in workspaces:
        try:
            work(name)
        except Exception as error:  # noqa: BLE001  # raised below
            error.add_note(f"in the workspace {name}")
            failed.append(error)
        done()
    if failed:
        raise ExceptionGroup(f"{len(failed)} workspaces", failed)


def keep_lead(leadership: Leadership, due: Ticker, is_lost: Callable[[], bool]) -> None:
    """Renew the lease, in a thread of its own, so that a round may take longer than a term.

    Not where this ticker can do nothing with the lead: what is due is not prepared yet or hangs, or the node is lost, for which
    Ray starts no worker any more. is_lost: whether it is.
    """
    hangs = due.busy_s > HANGS_S
    try:
        if due.prepared and not hangs and not is_lost():
            leadership.renew()
        elif leadership.is_leader:
            why = (
                f"nothing of a round has ended for {HANGS_S:.0f} s"
                if hangs
                else "its node is silent or given up"
            )
            _logger.warning("this ticker leaves the lead to another: %s", why)
            leadership.release()
    finally:
        LEADER.set(leadership.is_leader)


def _is_lost_here() -> bool:
    """Whether the node of this process is silent or given up."""
    import ray  # late: the processes that start Ray import this package before it

    from toque.functions.runtime.run.node_watch import node_watch  # late: only a replica needs it

    if not ray.is_initialized() or not node_watch().is_lost(ray.get_runtime_context().get_node_id()):
        return False
    node_watch().keep_watching()
    return True


def wait_prepared(tickers: Iterable[Ticker], *, within_s: float) -> bool:
    """Wait until tickers are prepared; returns whether all are."""
    deadline, waiting = time.monotonic() + within_s, list(tickers)
    while waiting and time.monotonic() < deadline:
        waiting = [ticker for ticker in waiting if not ticker.prepared]
        if waiting:
            time.sleep(0.05)
    return not waiting


def leadership_of(used: Context) -> Leadership:
    """Make this process's claim to lead the tickers of a platform: by Redis while it answers, else by the store."""
    from toque.functions.runtime.changes import connection  # late: only a replica needs it

    holder = f"{os.uname().nodename}/{os.getpid()}/{uuid.uuid4().hex}"
    leases: list[tuple[Lease, float]] = [(StoreLease(used.store, "ticker", holder), STORE_BEAT_S)]
    if used.redis_url is not None:
        client = connection(used.redis_url, timeout_s=0.5)
        leases.insert(0, (RedisLease(client, "ticker", holder), REDIS_BEAT_S))
    return Leadership(leases)


def application(options: dict[str, Any] | None = None) -> Application:
    """Build the Serve application of the ticker, which has no route.

    options: passed to the deployment's `options`, such as num_replicas; and `on_serve_nodes`, with which replicas run
    only where the resource `serve` is, two or more never all on one of several such nodes.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    from toque.ray_apps.serve.spread import laid_out  # late: as above

    chosen: dict[str, Any] = {"name": "ticker", "ray_actor_options": {"num_cpus": 0}} | (options or {})
    deployment: Any = serve.deployment(TickerReplica, **laid_out(chosen))
    found: Application = deployment.bind()
    return found
