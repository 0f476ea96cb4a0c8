"""Hashes and uploads one object for the training that started it: reads store, key, the sizes of its pieces and then their bytes, and
answers with digests or an error.

The kernel ends it with the thread that waits for it, and so with a training that is killed: what it was uploading counts for nothing.
It must not import torch, which takes seconds.
"""

import ctypes
import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

BLOCK_BYTES = 1 << 20
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICENESS = 19

Digests = tuple[str, ...]
"""SHA-256 of each block of a piece, shortened to 128 bits."""


class Pieces:
    """Stream of the pieces that `source` holds one after the other; each of their blocks is hashed as it is read.

    sizes: of the pieces in bytes. digests: of the pieces that were read, complete at the end.
    """

    def __init__(self, source: BinaryIO, sizes: Sequence[int]) -> None:
        self.size_bytes, self.digests = sum(sizes), list[list[str]]([] for _ in sizes)
        self._source = source
        self._blocks = [
            (number, min(BLOCK_BYTES, size - start))
            for number, size in enumerate(sizes)
            for start in range(0, size, BLOCK_BYTES)
        ][::-1]  # the next one last
        self._begun = hashlib.sha256()  # of the present block
        self._left = self._blocks[-1][1] if self._blocks else 0  # of the present block

    def read(self, size: int = -1, /) -> bytes:
        """Read so many of the next bytes, or all that are left. Raises: EOFError if the source ends before the pieces do."""
        found = []
        while self._blocks and size != 0:
            data = self._source.read(self._left if size < 0 else min(size, self._left))
            if not data:
                raise EOFError("the training ended while its checkpoint was sent")
            found.append(data)
            size -= len(data) if size > 0 else 0
            self._hash(data)
        return b"".join(found)

    def _hash(self, data: bytes) -> None:
        self._begun.update(data)
        self._left -= len(data)
        if not self._left:
            self.digests[self._blocks.pop()[0]].append(_shortened(self._begun))
            self._begun = hashlib.sha256()
            self._left = self._blocks[-1][1] if self._blocks else 0


def digests_of(data: memoryview) -> Digests:
    """Hash each block of one piece that is in memory."""
    blocks = (data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES))
    return tuple(_shortened(hashlib.sha256(block)) for block in blocks)


def _shortened(found: Any) -> str:
    return str(found.hexdigest())[:32]


def upload_pieces(store: Any, key: str, source: BinaryIO, sizes: Sequence[int]) -> list[Digests]:
    """Store the pieces that a source holds as one object; returns their digests. Raises: what the store's own `upload` does."""
    pieces = Pieces(source, sizes)
    store.upload(key, pieces)
    return [tuple(each) for each in pieces.digests]


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
    source = sys.stdin.buffer
    answer: list[Digests] | Exception
    try:
        store, key, sizes = pickle.load(source)  # noqa: S301  # the parent's own
        answer = upload_pieces(store, key, source, sizes)
    except Exception as error:  # noqa: BLE001  # the parent raises it
        answer = error
    pickle.dump(answer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
