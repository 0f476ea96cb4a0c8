"""Dispatch of one invocation to workers: to one as a rule, and to one more elsewhere when a node falls silent before any claim.

Ray does not say on which node a task waits, and waits itself until it gives a silent node up. So the invocation is given to
another worker besides, away from the silent nodes. The first that claims it runs it; the others find it claimed and end.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from toque.functions.runtime.durable.attempt import AttemptResult
from toque.functions.runtime.durable.executor.launcher import Launcher
from toque.functions.runtime.durable.ledger import FollowedRecord
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.node_watch import Nodes
from toque.functions.runtime.run.warm_workers import Worker

LOOK_EVERY_S = 0.5
_UNDECIDED = {"queued", "running"}


@dataclass
class Dispatch:
    """Workers that an invocation was given to and that have not ended.

    length: of the record that they were given; workers: by the ids of the silent nodes that each was kept away from; names: under which
    they claim it; node: address of the node that it was claimed on, once it is known.
    """

    function: DeclaredFunction
    length: int
    workers: dict[frozenset[str], Worker] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    node: str | None = None
    _looked_at: float = field(default=float("-inf"))

    def send(
        self, launcher: Launcher, followed: FollowedRecord, silent: Nodes, *, backfilled: bool = False
    ) -> None:
        """Start a worker for the invocation, away from silent nodes. backfilled: see `Attempt`."""
        name = uuid.uuid4().hex
        self.names.add(name)
        self.workers[frozenset(silent.values())] = launcher.start(
            self.function, followed, silent, worker=name, backfilled=backfilled
        )

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether a worker has ended, be it that another thread has taken the last one already."""
        several = list(self.workers.values())
        return not several or any(each.wait(0) for each in several[:-1]) or several[-1].wait(timeout_s)

    def take(self) -> tuple[Outcome, bool]:
        """Remove a worker that has ended; returns its outcome, and whether that decides what becomes of the invocation."""
        avoided = next(each for each, worker in self.workers.items() if worker.wait(0))
        outcome = self.workers.pop(avoided).outcome()
        result = outcome.value
        decided = isinstance(result, AttemptResult) and result.status not in _UNDECIDED
        return outcome, decided or not self.workers

    def concerns(self, record: Record) -> bool:
        """Whether the end of these workers is the record's: one of them claimed it last, or nobody has since it was given to them."""
        return record.length == self.length if record.status == "queued" else record.worker in self.names

    def needs_look(self, silent: Nodes) -> bool:
        """Whether the ledger should be asked about it: it was claimed on a silent node, or may wait for one."""
        concerned = self.node in silent if self.node else frozenset(silent.values()) not in self.workers
        if not concerned or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = time.monotonic()
        return True

    def kill(self) -> None:
        """Kill every worker that has not ended."""
        for each in self.workers.values():
            each.kill()
