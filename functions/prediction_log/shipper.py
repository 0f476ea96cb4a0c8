"""Shipper that moves records from the write-ahead files to the stream, off the path of any response.

Redis away: the files grow up to their bound and shipping goes on when it is back. Orphans, the files of dead
writers on this machine, are shipped by the process that claims their lock, and removed once they are drained.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from redis import RedisError

from clusters.redis_clients import open_redis
from functions.prediction_log.stream import Stream
from functions.prediction_log.wal import (
    Chunk,
    SegmentReader,
    WriteAheadLog,
    claim,
    is_writers_folder,
    recover,
    segments_of,
)
from registry.access import DEFAULT_WORKSPACE

__all__ = ["LogWriter", "adopt_orphans"]

_log = logging.getLogger(__name__)


class LogWriter:
    """Writer of the durable log: `append` returns when the record survives this process; a thread ships it to Redis.

    root: the folder of the write-ahead files on this machine. kind: "predictions" or "labels".
    redis_url: where the stream is. workspace: whose records they are.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        redis_url: str,
        *,
        workspace: str = DEFAULT_WORKSPACE,
        limit_bytes: int = 1 << 30,
        segment_bytes: int = 1 << 20,
        fsync: bool = False,
        poll_s: float = 0.25,
        tidy_every_s: float = 5.0,
    ) -> None:
        self._wal = WriteAheadLog(
            root / kind, limit_bytes=limit_bytes, segment_bytes=segment_bytes, fsync=fsync
        )
        self.append = self._wal.append
        """Write one record durably and return its number. Raises: LogFullError."""
        self.extend = self._wal.extend
        """Write several records, all or none, and return the last number. Raises: LogFullError."""
        self._root, self._kind = root, kind
        self._poll_s, self._tidy_every_s = poll_s, tidy_every_s
        self._next_tidy = self._deadline = time.monotonic() + tidy_every_s
        self._stop = threading.Event()
        self._position = 0
        self._unsent: Chunk | None = None
        self._rotation = self._rotating = self._rotated_at = 0
        client = open_redis(redis_url, patience_s=0.0)  # the thread's rounds are its patience
        self._stream = Stream(client, kind, workspace=workspace)
        self._thread = threading.Thread(target=self._run, name=f"ship-{kind}", daemon=True)
        self._thread.start()

    @property
    def writer(self) -> str:
        """Name of this writer, new for every process."""
        return self._wal.writer

    @property
    def waiting_bytes(self) -> int:
        """Size of the records in this writer's files that are not drained yet."""
        return self._wal.size_bytes

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ship what can be shipped in `timeout_s` and stop; the rest stays in the files for an adopter."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        self._wal.close()

    def _run(self) -> None:
        away = False
        while self._wait():
            try:
                self._ship()
                self._tidy()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    _log.warning("%s: cannot ship, keeping records in the files: %s", self._kind, error)
                away = True
                self._stop.wait(0.5)

    def _wait(self) -> bool:
        """Wait for the next round; False once everything is shipped or the deadline has passed."""
        if not self._stop.wait(self._poll_s):
            return True
        return self._position < self._wal.last and time.monotonic() < self._deadline

    def _ship(self) -> None:
        """Ship the records written by now; later ones wait for the next round.

        Ends early when the stream is full, keeping the chunk it read.
        """
        goal = self._wal.last
        while self._position < goal:
            if self._unsent is None:
                self._unsent = self._wal.read_after(self._position)
            if self._unsent is None:
                return
            self._position, full = _send(self._stream, self.writer, self._unsent, self._position)
            if full:
                self._stop.wait(0.2)
                return
            self._unsent = None

    def _tidy(self) -> None:
        """Drop drained files and adopt those of dead writers, at most every few seconds."""
        if time.monotonic() < self._next_tidy:
            return
        self._next_tidy = time.monotonic() + self._tidy_every_s
        self._rotate()
        self._wal.forget(self._stream.drained(self.writer))
        self._report_rotation()
        adopt_orphans(self._root, self._kind, self._stream)

    def _rotate(self) -> None:
        """Meet a new request to drop what the files hold: later records go to a file of their own."""
        asked = self._stream.rotation()
        if asked > self._rotating:
            self._rotating, self._rotated_at = asked, self._wal.rotate()

    def _report_rotation(self) -> None:
        if self._rotating > self._rotation and self._wal.oldest > self._rotated_at:
            self._stream.mark_rotated(self.writer, self._rotating)
            self._rotation = self._rotating


def _send(stream: Stream, writer: str, chunk: Chunk, position: int) -> tuple[int, bool]:
    """Send one chunk; returns the position Redis is at now, and whether the stream is full."""
    frames, _, last = chunk
    answer = stream.append(writer, frames, after=position, last=last)
    return answer.last, answer.full


def adopt_orphans(root: Path, kind: str, stream: Stream) -> int:
    """Ship the files of dead writers found under `root`, and remove those that are drained.

    A folder that holds anything but a writer's lock and segments is left alone.
    Returns how many folders were claimed.
    """
    claimed = 0
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted((root / kind).iterdir()):
            lock = claim(folder) if is_writers_folder(folder) else None
            if lock is None:
                continue
            try:
                _adopt(folder, stream)
                claimed += 1
            finally:
                os.close(lock)
    return claimed


def _adopt(folder: Path, stream: Stream) -> None:
    writer = folder.name
    last = recover(folder)
    if stream.drained(writer) >= last:
        for _, segment in segments_of(folder):
            segment.unlink()
        (folder / "lock").unlink()
        folder.rmdir()
        stream.forget(writer)
        return
    segments, reader = segments_of(folder), SegmentReader()
    position = stream.shipped(writer)
    while (chunk := reader.read(segments, position)) is not None:
        position, full = _send(stream, writer, chunk, position)
        if full:
            return
