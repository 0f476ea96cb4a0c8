"""Hashes and uploads one file for the training that started it: reads store, key, path and spans, answers with digests or an error.

The kernel ends it with the thread that waits for it, and so with a training that is killed: what it was uploading counts for nothing.
It must not import torch, which takes seconds.
"""

import ctypes
import hashlib
import mmap
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICENESS = 19

Span = tuple[int, int]
"""Where a piece of a file begins, and its size in bytes."""


def digests_of(data: memoryview) -> tuple[str, ...]:
    """SHA-256 of each block of a piece, shortened to 128 bits."""
    return tuple(
        hashlib.sha256(data[start : start + BLOCK_BYTES]).hexdigest()[:32]
        for start in range(0, len(data), BLOCK_BYTES)
    )


def upload_pieces(store: Any, key: str, path: Path, spans: Sequence[Span]) -> list[tuple[str, ...]]:
    """Store a file; returns the digests of its pieces. Raises: what the store's own `upload` does."""
    found = _digests(path, spans)
    store.upload(key, path)
    return found


def _digests(path: Path, spans: Sequence[Span]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    if not path.stat().st_size:  # which cannot be mapped
        return [() for _ in spans]
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        for start, size_bytes in spans:
            with data[start : start + size_bytes] as piece:
                found.append(digests_of(piece))
    return found


def _yield_to_steps() -> None:
    """Leave the processors to the training, and be done within an interval all the same, where steps take all of them.

    Niceness 19 has a sixtieth of a processor beside a training of ordinary priority, but almost a third beside one that is nice
    itself, as Ray's workers are. The idle class has a twelfth beside that, and beside the other too little to be done in time.
    """
    beside_nice = os.getpriority(os.PRIO_PROCESS, 0) > 0
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    if beside_nice and sys.platform == "linux":
        with suppress(OSError):  # a sandbox that forbids it leaves the niceness
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Hash and upload at a low priority, bound to the parent whose process id is the argument."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):  # it ended before this was bound to it
        sys.exit(1)
    _yield_to_steps()
    answer: list[tuple[str, ...]] | Exception
    try:
        answer = upload_pieces(*pickle.load(sys.stdin.buffer))  # noqa: S301  # the parent's own
    except Exception as error:  # noqa: BLE001  # the parent raises it
        answer = error
    pickle.dump(answer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
