"""Adoption of write-ahead files whose writer died: any process that shares the disk ships them.

A folder is an orphan if its lock can be taken. It is removed once its records are in the table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from functions.prediction_log.writing.stream import Stream
from functions.prediction_log.writing.stream_of_0_1 import OldStream
from functions.prediction_log.writing.wal import SegmentReader, claim, is_writers_folder, recover, segments_of
from functions.prediction_log.writing.wal_root import roots_beside

__all__ = ["KINDS", "adopt_all", "adopt_orphans"]

KINDS = ("predictions", "labels")


def adopt_all(root: Path, client: Any, *, workspace: str) -> int:
    """Adopt the orphans of all workspaces and kinds of the platform whose folder of one workspace is `root`.

    Returns how many folders were claimed.
    """
    return sum(
        adopt_orphans(folder, Stream(client, kind, workspace=name))
        for name, folder in roots_beside(root, workspace)
        for kind in KINDS
    )


def adopt_orphans(root: Path, stream: Stream) -> int:
    """Ship the files of dead writers found under `root`, and remove those that are drained.

    A folder that holds anything but a writer's lock and segments is left alone.
    Returns how many folders were claimed.
    """
    claimed = 0
    for folder in _orphans(root / stream.kind):
        _adopt(folder, stream)
        claimed += 1
    return claimed


def _orphans(kind: Path) -> Iterator[Path]:
    """Yield the folders of dead writers, each locked for as long as it is looked at."""
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(kind.iterdir()):
            lock = claim(folder) if is_writers_folder(folder) else None
            if lock is None:
                continue
            try:
                yield folder
            finally:
                os.close(lock)


def _adopt(folder: Path, stream: Stream) -> None:
    writer, last, node = folder.name, recover(folder), os.uname().nodename
    state = stream.state(writer)
    if state.drained >= last and state.lost_ms:
        stream.report_alive(writer, node=node, reserved=last)  # forgotten once its loss is taken back
        return
    if state.drained >= last:
        for _, segment in segments_of(folder):
            segment.unlink()
        (folder / "lock").unlink()
        folder.rmdir()
        stream.forget(writer)
        OldStream(stream.client, stream.kind, workspace=stream.workspace).forget(writer)
        return
    position = stream.report_alive(writer, node=node, reserved=last)
    segments, reader = segments_of(folder), SegmentReader()
    while (chunk := reader.read(segments, position)) is not None:
        frames, _, end = chunk
        position = stream.append(writer, frames, after=position, last=end, node=node, reserved=last).last
