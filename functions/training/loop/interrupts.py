"""Ctrl-C while Ray trains: the caller gets its KeyboardInterrupt, and its own handler back."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Run Ray Train or Tune so that Ctrl-C ends in KeyboardInterrupt and no handler of theirs stays behind.

    Ray Train turns the signal into SystemExit, or swallows it when its run is just over, and never takes its handler away;
    Tune ends the sweep early and goes on as if it were whole. Python tells of a signal on a file descriptor, too, whoever
    handles it: that is how we know.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # neither installs a handler there
        return
    told, tell = os.pipe()
    os.set_blocking(told, False)
    os.set_blocking(tell, False)
    handler, descriptor = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(tell)
    try:
        yield
    except BaseException as error:
        if _interrupted(told):
            raise KeyboardInterrupt from error
        raise
    else:
        if _interrupted(told):
            raise KeyboardInterrupt
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGINT, handler)
        os.close(told)
        os.close(tell)


def _interrupted(told: int) -> bool:
    try:
        return signal.SIGINT in os.read(told, 1024)
    except BlockingIOError:  # no signal came
        return False
