"""Deadline of a run, enforced inside the process that does the work, so that it needs no supervisor."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from toque.functions.runtime.errors import TimedOut
from toque.functions.runtime.run.execution import run_to_end

GRACE_S = 5.0


class _Alarm:
    """Alarm of this process, and the watchdog behind it. devnull: open for as long as the watchdog may write to it."""

    def __init__(self, devnull: TextIO) -> None:
        self._devnull = devnull
        self._waited_s = 0.0
        self._stopped_at: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether the alarm is stopped."""
        return self._stopped_at is not None

    @property
    def waited_s(self) -> float:
        """Seconds for which the alarm has been stopped so far."""
        return self._waited_s + (time.monotonic() - self._stopped_at if self._stopped_at else 0.0)

    def set(self, left_s: float) -> None:
        """Set the alarm, and the watchdog to go off after it."""
        self._waited_s, self._stopped_at = self.waited_s, None
        faulthandler.dump_traceback_later(left_s + GRACE_S, exit=True, file=self._devnull)
        signal.setitimer(signal.ITIMER_REAL, left_s)

    def stop(self) -> float:
        """Stop alarm and watchdog; returns the seconds that were left."""
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        self._stopped_at = time.monotonic()
        return left_s


_alarm: _Alarm | None = None  # of the run in this process, if it has a time limit


def with_deadline(
    name: str, body: Callable[..., Any], timeout_s: float | None, *, limit: str = "timeout_s"
) -> Callable[..., Any]:
    """Wrap `body` so that it runs to its end within the deadline. limit: see `deadline`."""
    if timeout_s is None:
        return body

    def run(**arguments: Any) -> Any:
        with deadline(name, timeout_s, limit=limit):
            return run_to_end(body, arguments)

    return run


@contextmanager
def deadline(name: str, timeout_s: float | None, *, limit: str = "timeout_s") -> Iterator[None]:
    """Raise TimedOut in the block after `timeout_s`; code that ignores the signal is killed `GRACE_S` later.

    limit: name by which the time was declared, for the error.

    The alarm interrupts Python code and system calls. A loop in C does not see it: faulthandler's watchdog,
    which needs no interpreter lock, then ends the process.
    """
    global _alarm  # noqa: PLW0603  # a process has one alarm
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_timed_out(*_: object) -> None:
        raise TimedOut(f"{name} ran past {limit}={timeout_s} and was killed")

    previous = signal.signal(signal.SIGALRM, raise_timed_out)
    with open(os.devnull, "w") as devnull:  # noqa: PTH123  # the watchdog wants a descriptor
        _alarm = _Alarm(devnull)
        _alarm.set(timeout_s)
        try:
            yield
        finally:
            _alarm.stop()
            _alarm = None
            signal.signal(signal.SIGALRM, previous)


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of this process's deadline within the block, as waiting for room on the cluster is no run time."""
    alarm = _alarm
    if alarm is None or alarm.stopped or threading.current_thread() is not threading.main_thread():
        yield
        return
    left_s = alarm.stop()
    try:
        yield
    finally:
        alarm.set(max(left_s, 0.001))


def waited_s() -> float:
    """Return for how long this process's run has waited within `paused`."""
    return 0.0 if _alarm is None else _alarm.waited_s
