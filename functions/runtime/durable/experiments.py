"""Experiments of an executor: runs that take of their team's quota, begin when they are admitted, and yield when they are asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from toque.functions.runtime.admission.request import YIELD_S
from toque.functions.runtime.cards import Node
from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger, record_handover
from toque.functions.runtime.durable.slots import Admissions, QuotaSlots, allotment_in, board_of
from toque.functions.runtime.durable.workflow import ask_to_yield
from toque.functions.runtime.run import cluster, room
from toque.functions.runtime.telemetry import PREEMPTIONS
from toque.registry.errors import Unavailable

CARDS_EVERY_S = 2.0
_logger = logging.getLogger(__name__)


@dataclass
class Experiments:
    """Experiments that one executor starts and stops, by invocation."""

    context: Context
    ledger: Ledger
    _quota: QuotaSlots = field(init=False)
    _running: set[str] = field(default_factory=set)  # as far as this executor knows
    _yielding: dict[str, datetime] = field(default_factory=dict)  # since when they are asked to yield
    _cards: tuple[float, list[Node] | None] = (float("-inf"), None)

    def __post_init__(self) -> None:
        used = self.context
        board = board_of(used.platform_url)
        self._quota = QuotaSlots(
            self.ledger,
            workspace=used.workspace,
            board=board,
            prices=used.prices,
            allotment=allotment_in(used),
        )

    def includes(self, followed: FollowedRecord) -> bool:
        """Whether an invocation is an experiment: its function declares a demand."""
        return self._quota.needs_quota(followed)

    def note_running(self, invocation: str) -> None:
        """Note that an experiment runs, started by whichever executor."""
        self._running.add(invocation)

    def note_started(self, invocation: str) -> None:
        """Note that a run begins, which nobody has asked to yield yet."""
        self._yielding.pop(invocation, None)

    def decide(
        self, waiting: Mapping[str, FollowedRecord], *, open_now: Collection[str], started: Collection[str]
    ) -> Admissions | None:
        """Decide which experiments begin, yield or can never run; None if nothing needs a decision, or the store is away.

        waiting: those that are due; open_now: all invocations that have not ended; started: those that have a worker.
        """
        self._running &= set(open_now)
        if not waiting and self._quota.idle(running=len(self._running)):
            return None
        try:
            return self._quota.admit(
                waiting, started=started, yielding=self._yielding, capacity=self._capacity()
            )
        except Unavailable as error:
            _logger.warning("no experiment begins now: %s", error)
            return None

    def _capacity(self) -> list[Node] | None:
        """Nodes with cards, asked for every two seconds; None outside of a cluster, and until its head has answered once."""
        if not cluster.running():
            return None
        asked_at, found = self._cards
        if time.monotonic() - asked_at > CARDS_EVERY_S:
            try:
                found = room.cards()
            except Exception as error:  # noqa: BLE001  # Ray's client raises several kinds; those known before count on
                _logger.warning("the cluster's head does not say which cards there are: %s", error)
            self._cards = time.monotonic(), found
        return found

    def preempt(self, invocation: str, why: str) -> None:
        """Ask a run to yield."""
        followed = self.ledger.follow(invocation)
        if ask_to_yield(followed, why):
            _logger.info("invocation %s is asked to yield for %s", invocation, why)
            PREEMPTIONS.labels(self.context.workspace, followed.record.function).inc()
        if followed.record.preempting is not None:
            self._yielding[invocation] = followed.record.preempting

    def overdue(self, open_now: Collection[str]) -> Iterator[str]:
        """Find the runs that were asked to yield and have not in time."""
        late = self.ledger.clock() - timedelta(seconds=YIELD_S)
        for each, since in list(self._yielding.items()):
            if each not in open_now:
                del self._yielding[each]
            elif since < late:
                yield each

    def record_preempted(self, followed: FollowedRecord) -> None:
        """Record that a run which did not yield was killed; it takes up after what it saved."""
        worker = followed.record.worker
        self._yielding.pop(followed.record.id, None)
        if worker:
            record_handover(followed, {worker}, ledger=self.ledger)
            self._quota.release(worker)

    def release(self, worker: str) -> None:
        """Release what a lost worker held of its team's quota."""
        self._quota.release(worker)
