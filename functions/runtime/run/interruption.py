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


def _descendants(pid: int) -> Iterator[int]:
    """Find the processes that a process started, and theirs; none where the system does not list them."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # that thread, or the process, has ended
            for child in map(int, path.read_text().split()):
                yield from _descendants(child)
                yield child
