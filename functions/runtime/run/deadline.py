"""Deadline of a run, enforced inside the process that does the work, so that it needs no supervisor."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from functions.runtime.errors import TimedOut
from functions.runtime.run.execution import run_to_end

GRACE_S = 5.0


def with_deadline(name: str, body: Callable[..., Any], timeout_s: float | None) -> Callable[..., Any]:
    """Wrap `body` so that it runs to its end within the deadline."""
    if timeout_s is None:
        return body

    def run(**arguments: Any) -> Any:
        with deadline(name, timeout_s):
            return run_to_end(body, arguments)

    return run


@contextmanager
def deadline(name: str, timeout_s: float | None) -> Iterator[None]:
    """Raise TimedOut in the block after `timeout_s`; code that ignores the signal is killed `GRACE_S` later.

    The alarm interrupts Python code and system calls. A loop in C does not see it: faulthandler's watchdog,
    which needs no interpreter lock, then ends the process.
    """
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_timed_out(*_: object) -> None:
        raise TimedOut(f"{name} ran past timeout_s={timeout_s} and was killed")

    previous = signal.signal(signal.SIGALRM, raise_timed_out)
    with open(os.devnull, "w") as devnull:  # noqa: PTH123  # the watchdog wants a descriptor
        faulthandler.dump_traceback_later(timeout_s + GRACE_S, exit=True, file=devnull)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, previous)
