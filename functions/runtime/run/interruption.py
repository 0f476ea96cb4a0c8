"""End of a run that is no longer its invocation's, from another thread of the process that does the work.

So it needs no supervisor: whoever started the process may be gone, or no longer lead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from toque.functions.runtime.errors import Cancelled


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
        while self._thread is not None:
            with suppress(Cancelled):  # raised just now, and too late to end anything
                with self._lock:
                    thread, self._thread = self._thread, None
                _set_error(thread, None)

    def interrupt(self) -> None:
        """End the block, if it runs now."""
        with self._lock:
            if self._thread is not None:
                self._end()

    def _raise_cancelled(self) -> None:
        _set_error(self._thread, Cancelled)


def _set_error(thread: int | None, error: type[Exception] | None) -> None:
    """Have an error raised in a thread at its next bytecode; None: none, also if one was to be raised."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread or 0), None if error is None else ctypes.py_object(error)
    )


def end_process() -> None:
    """End this process at once, and all that it started."""
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if os.getpgrp() == os.getpid():  # of a forked child: what it started and left is of its group
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _descendants(pid: int) -> Iterator[int]:
    """Find the processes that a process started, and theirs; none where the system does not list them."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # that thread, or the process, has ended
            for child in map(int, path.read_text().split()):
                yield from _descendants(child)
                yield child
