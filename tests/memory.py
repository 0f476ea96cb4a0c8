"""Memory of the process that tests, watched while it does something."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """Bytes that this process alone holds, at moments of the block, above those before it."""
    page, ended, before = os.sysconf("SC_PAGE_SIZE"), threading.Event(), 0
    peak = [0]

    def own() -> int:
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * page

    def watch() -> None:
        while not ended.wait(0.01):
            peak.append(own() - before)

    before = own()
    watching = threading.Thread(target=watch)
    watching.start()
    yield peak
    ended.set()
    watching.join()
