"""Uploads of a checkpoint's parts, which leave the interpreter of the training to its steps.

A client of S3 runs much Python, in threads that wait for the interpreter as the steps do: a step beside an upload within the
process took up to 1.6 times as long. So a large file goes through a process of its own, which leaves the processors to the steps; it
hashes, too.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from functions.training.checkpoints.uploader import Span, upload_pieces
from registry import ObjectStore, Unavailable

APART_FROM_BYTES = 64 << 20
"""Size from which a file is worth a process, which takes a second or two of a processor to start."""

_PROGRAM = Path(__file__).with_name("uploader.py")


def upload(store: ObjectStore, key: str, path: Path, spans: Sequence[Span]) -> list[tuple[str, ...]]:
    """Store the file at `path`, a large one through a process of its own; returns the digests of its pieces.

    Raises: what the store's own `upload` does.
    """
    if path.stat().st_size < APART_FROM_BYTES:
        return upload_pieces(store, key, path, spans)
    return upload_apart(store, key, path, spans)


def upload_apart(store: ObjectStore, key: str, path: Path, spans: Sequence[Span]) -> list[tuple[str, ...]]:
    """Store the file at `path` through a process of its own; it ends with this thread.

    Raises: what the store's own `upload` does; Unavailable if the process was killed.
    """
    paths = os.pathsep.join(dict.fromkeys(os.path.abspath(each) for each in sys.path))  # noqa: PTH100 - "" too
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-P", _PROGRAM, str(os.getpid())],
        input=pickle.dumps((store, key, path, spans)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(
            f"{key}: the process that uploads it ended with code {done.returncode}; is the machine out of memory?"
        )
    answer: list[tuple[str, ...]] | Exception = pickle.loads(done.stdout)  # noqa: S301 - of our own process
    if isinstance(answer, Exception):
        raise answer
    return answer
