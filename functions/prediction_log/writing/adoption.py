"""Adoption of write-ahead files whose writer died: any process that shares the disk ships them.

A folder is an orphan if its lock can be taken. It is removed once its records are in the table.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toque.functions.prediction_log.frames import Frame, encode_frame
from toque.functions.prediction_log.writing.stream import Stream, WriterState
from toque.functions.prediction_log.writing.wal import (
    CHUNK_BYTES,
    claim,
    intact_records,
    is_writers_folder,
    recover,
    segments_of,
)
from toque.functions.prediction_log.writing.wal_root import roots_beside

__all__ = ["KINDS", "adopt_all", "adopt_orphans"]

_log = logging.getLogger(__name__)
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
    state = _report_damaged(folder, stream, last)
    if next(intact_records(folder, state.drained), None) is None:
        if state.lost_ms or state.damaged > state.damaged_told:
            # forgotten once its loss is taken back, and its damaged records are reported
            stream.report_alive(writer, node=node, reserved=last)
            return
        for _, segment in segments_of(folder):
            segment.unlink()
        (folder / "lock").unlink()
        folder.rmdir()
        stream.forget(writer)
        return
    position = stream.report_alive(writer, node=node, reserved=last)
    for frames, end in _chunks(intact_records(folder, position)):
        answer = stream.append(writer, frames, after=position, last=end, node=node, reserved=last)
        if not answer.added:
            return  # Redis lost or has got some meanwhile; the next round goes on from there
        position = end


def _report_damaged(folder: Path, stream: Stream, last: int) -> WriterState:
    """Tell Redis how many records up to `last` are damaged; returns what is known of the writer.

    It is told before any is shipped: whoever goes on after a crash sees no gap before what Redis has.
    """
    state = stream.state(folder.name)
    position = state.shipped or state.drained
    if position >= last:
        return state
    damaged = last - position - sum(1 for _ in intact_records(folder, position))
    if damaged <= state.damaged:
        return state
    _log.error("%s: %d records are damaged and lost; look at the disk", folder, damaged)
    stream.report_alive(folder.name, node=os.uname().nodename, reserved=last)
    stream.mark_damaged(folder.name, damaged, told=state.damaged_told)
    return stream.state(folder.name)


def _chunks(records: Iterator[Frame]) -> Iterator[tuple[bytes, int]]:
    """Join records to chunks, each with the number of its last."""
    chunk, last = bytearray(), 0
    for record in records:
        chunk += encode_frame(record.number, record.payload)
        last = record.number
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk), last
            chunk.clear()
    if chunk:
        yield bytes(chunk), last
