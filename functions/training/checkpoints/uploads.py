"""Uploads of a checkpoint's parts, which leave interpreter and processors of the training to its steps.

A client of S3 runs much Python, in threads that wait for the interpreter as the steps do: a step beside an upload within the
process took up to 1.6 times as long. So a large part goes through a process of its own, which reads it from a pipe, hashes and
sends it. The pipe is filled no faster than the checkpoint has to be there: its work is spread over a part of the interval.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from toque.functions.training.checkpoints.uploader import Digests, upload_pieces
from toque.registry import ObjectStore, Unavailable

APART_FROM_BYTES = 64 << 20
"""Size from which a part is worth a process, which takes a second or two of a processor to start."""

_PROGRAM = Path(__file__).with_name("uploader.py")
_SENT_BYTES = 1 << 20  # at a time


class Pace:
    """Time over which a part is sent evenly, `seconds` from the first byte, until it is to hurry."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Let what is left be sent as fast as it can be."""
        self._hurry.set()

    def wait(self, share: float) -> None:
        """Wait until it is time for what comes after this share of the bytes."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        ahead_s = self._began + share * self._seconds - now
        if ahead_s > 0:
            self._hurry.wait(ahead_s)


def upload(store: ObjectStore, key: str, pieces: Sequence[memoryview], pace: Pace) -> list[Digests]:
    """Store the pieces as one object, large ones through a process of its own; returns their digests.

    Raises: what the store's own `upload` does.
    """
    if sum(map(len, pieces)) < APART_FROM_BYTES:
        return upload_pieces(store, key, io.BytesIO(b"".join(pieces)), [len(each) for each in pieces])
    return upload_apart(store, key, pieces, pace)


def upload_apart(store: ObjectStore, key: str, pieces: Sequence[memoryview], pace: Pace) -> list[Digests]:
    """Store the pieces as one object through a process of its own, which ends with this thread; returns their digests.

    Raises: what the store's own `upload` does; Unavailable if the process was killed.
    """
    paths = os.pathsep.join(dict.fromkeys(os.path.abspath(each) for each in sys.path))  # noqa: PTH100 - "" too
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-P", _PROGRAM, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
        assert process.stdout is not None  # noqa: S101 - the same
        with suppress(BrokenPipeError), process.stdin as sink:  # it says why it reads no further
            sink.write(pickle.dumps((store, key, [len(each) for each in pieces])))
            _send(sink, pieces, pace)
        answered = process.stdout.read()
    if process.returncode != 0:
        raise Unavailable(
            f"{key}: the process that uploads it ended with code {process.returncode}; is the machine out of memory?"
        )
    answer: list[Digests] | Exception = pickle.loads(answered)  # noqa: S301 - of our own process
    if isinstance(answer, Exception):
        raise answer
    return answer


def _send(sink: IO[bytes], pieces: Sequence[memoryview], pace: Pace) -> None:
    size_bytes, sent = sum(map(len, pieces)), 0
    for piece in pieces:
        for start in range(0, len(piece), _SENT_BYTES):
            pace.wait(sent / size_bytes)
            sent += sink.write(piece[start : start + _SENT_BYTES])
