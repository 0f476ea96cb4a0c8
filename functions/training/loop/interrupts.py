"""Handling of Ctrl-C while Ray trains: the caller gets its KeyboardInterrupt, and its own handler back."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Run Ray Train or Tune so that Ctrl-C ends in KeyboardInterrupt and their signal handlers are removed.

    Ray Train turns the signal into SystemExit, or swallows it when its run is just over, and never removes its handler;
    Tune ends the sweep early and returns as if it were complete. Python also writes each signal to a wakeup file
    descriptor, whichever handler takes it: there the interrupt is read.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # neither Ray Train nor Tune installs a handler there
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    handler, descriptor = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(writer)
    try:
        yield
    except BaseException as error:
        if _interrupted(reader):
            raise KeyboardInterrupt from error
        raise
    else:
        if _interrupted(reader):
            raise KeyboardInterrupt
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGINT, handler)
        os.close(reader)
        os.close(writer)


def _interrupted(reader: int) -> bool:
    try:
        return signal.SIGINT in os.read(reader, 1024)
    except BlockingIOError:  # no signal came
        return False
