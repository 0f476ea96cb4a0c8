"""Ends of a run from within the process that does the work: at its deadline, or once it is no longer its invocation's.

So it needs no supervisor: whoever started the process may be gone, or no longer lead.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from toque.functions.runtime.errors import Cancelled, TimedOut
from toque.functions.runtime.run.execution import run_to_end

GRACE_S = 5.0  # to end after the alarm, before the process is killed


class Interruptible:
    """Block that another thread may end while it runs, and at no other time.

    end: ends the process, where that is the run's own; by default Cancelled is raised in the thread of the block, which a call that
    waits for others delays until it returns.
    """

    def __init__(self, end: Callable[[], None] | None = None) -> None:
        self._end = end or self._raise_cancelled
        self._lock = threading.Lock()
        self._thread: int | None = None

    def __enter__(self) -> None:
        self._thread = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = False
        while not ended:
            with suppress(Cancelled):  # raised just now, and too late to end anything
                with self._lock:
                    self._thread = None
                # What was to be raised is raised here at the latest: a loop looks for it. Taking it back instead would leave
                # Python looking for an error for ever, some percent slower, and a traced thread beside others would not go on at all.
                for _ in range(2):
                    pass
                ended = True

    def interrupt(self) -> None:
        """End the block, if it runs now."""
        with self._lock:
            if self._thread is not None:
                self._end()

    def _raise_cancelled(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread or 0), ctypes.py_object(Cancelled)
        )


def end_process() -> None:
    """End this process at once, and all that it started."""
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if os.getpgrp() == os.getpid():  # of a forked child: what it started and left is of its group
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


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


def _descendants(pid: int) -> Iterator[int]:
    """Find the processes that a process started, and theirs; none where the system does not list them."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # that thread, or the process, has ended
            for child in map(int, path.read_text().split()):
                yield from _descendants(child)
                yield child
