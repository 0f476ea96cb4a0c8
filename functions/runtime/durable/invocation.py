"""Handle of a caller on a durable invocation: its id, status, result, log and progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record, Status
from toque.functions.runtime.durable.values import get_value
from toque.functions.runtime.errors import Cancelled, InvocationFailed
from toque.functions.runtime.run.log import Progress, Segment, find_progress, read_log

R = TypeVar("R")
_FIRST_WAIT_S, _MAX_WAIT_S = 0.02, 0.5

_ledgers: dict[tuple[str, str], Ledger] = {}
_executors: dict[tuple[str, str], Executor] = {}


@dataclass(frozen=True)
class Invocation(Generic[R]):
    """Handle on the invocation `id`, in the store of `used`; any process can make one from the id."""

    id: str
    used: Context

    @classmethod
    def of(cls, invocation: str) -> Invocation[Any]:
        """Make the handle on an invocation in the store of the present context."""
        return Invocation(invocation, context())

    def record(self) -> Record:
        """Read the record of the invocation. Raises: UnknownInvocation."""
        return self._ledger.read(self.id)

    def status(self) -> Status:
        """Read the status of the invocation."""
        return self.record().status

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for the result and return it; this process runs the invocation if no other does.

        Raises: InvocationFailed with the error if it is dead; Cancelled; TimeoutError after `timeout_s`,
        while the invocation goes on.
        """
        record = self.wait(timeout_s)
        if record.status == "cancelled":
            raise Cancelled(f"{record.function} {self.id} was cancelled")
        if record.status == "dead" or record.result is None:
            failure = record.failure
            reason = f"{failure.type}: {failure.message}\n\n{failure.traceback}" if failure else "no result"
            raise InvocationFailed(
                f"{record.function} {self.id} is dead after {record.attempts} attempts: {reason}"
            )
        value = get_value(self.used.store, record.result)
        function = catalog.find(record.reference)
        result: R = function.signature.load_result(value) if function else value
        return result

    def wait(self, timeout_s: float | None = None) -> Record:
        """Wait for the end and return the record. Raises: TimeoutError."""
        deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
        followed = self._ledger.follow(self.id)
        wait_s, seen = _FIRST_WAIT_S, 0
        while not (record := followed.refresh()).ended:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"{self.id} is {followed.record.status} after {timeout_s} s of waiting; it goes on"
                )
            changed = record.runnable and record.length > seen  # for example signalled before its deadline
            if changed and executor_of(self.used).enqueue(self.id, record.due):
                seen = record.length
            executor_of(self.used).drive(self.id, wait_s=min(wait_s, left_s))
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
        executor_of(self.used).release_worker(self.id)
        return followed.record

    def log(self, *, after: str = "") -> Iterator[Segment]:
        """Read the log so far, by time. after: name of a segment; only later ones. Raises: UnknownInvocation."""
        self._ledger.first_entry(self.id)
        return read_log(self.used.store, self.id, after=after)

    def progress(self) -> Progress | None:
        """Find the last progress that the invocation reported; None if it has not."""
        return find_progress(self.used.store, self.id)

    def cancel(self) -> None:
        """Cancel the invocation, unless it has ended; a running attempt is killed."""
        self._ledger.cancel(self.id)

    def signal(self, name: str, value: Any = None) -> None:
        """Send the invocation a signal that it waits for, now or later."""
        self._ledger.signal(self.id, name, value)

    @property
    def _ledger(self) -> Ledger:
        return ledger_of(self.used)


def ledger_of(used: Context) -> Ledger:
    """Return this process's ledger on the store of a context."""
    key = (used.store_url, used.actor)
    if key not in _ledgers:
        _ledgers[key] = Ledger(used.store, actor=used.actor)
    return _ledgers[key]


def executor_of(used: Context) -> Executor:
    """Return this process's executor on the store of a context."""
    key = (used.store_url, used.actor)
    if key not in _executors:
        _executors[key] = Executor(used, ledger_of(used))
    return _executors[key]


def close_executors() -> None:
    """End all runs of this process's executors, which is about to end, and queue them for its successor."""
    for executor in _executors.values():
        executor.close()


def run_pending(used: Context) -> int:
    """Run the invocations that are new or due, without waiting; returns how many are open.

    A ticker calls this a few times a second.
    """
    return executor_of(used).poll(ends_unknown=True)
