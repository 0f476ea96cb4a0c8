"""Write-ahead log: a record is written before its response leaves, and survives the death of the process.

One folder per writer, `{root}/{kind}/{writer}/`, holding segments named by their first record number and a
`lock` file that the living writer holds. The kernel drops the lock when the process dies, however it dies:
a folder whose lock can be taken is an orphan, to be shipped by the process that finds it. Records are handed to the
kernel, not forced to the disk (`fsync=True` does that too): they survive a killed process, not a lost machine.
The newest segment is a file of its full size, mapped into memory: a record put there is the kernel's at once, without a
call of the kernel. Its room on the disk is taken before, since a full disk behind a mapping would end the process.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import unquote, urlsplit

from toque.clusters.file_lock import lock
from toque.functions.prediction_log.errors import LogFullError
from toque.functions.prediction_log.frames import (
    HEADER_BYTES,
    Frame,
    encode_frame,
    intact_frames,
    whole_frames,
)
from toque.registry.access import DEFAULT_WORKSPACE, split_workspace_url
from toque.registry.store import private_folder, temporary_folder

Chunk = tuple[bytes, int, int]
"""Whole frames, with the numbers of the first and the last."""
CHUNK_BYTES = 1 << 20
"""Size of a segment: what a busy writer adds between two rounds of its shipper is one chunk."""
LogMode = Literal["file", "redis", "two_nodes"]
"""Where a record is before its answer leaves.

file: in a file on the node. redis: in Redis too; without Redis in that file alone, which is counted. two_nodes: in that file
and, confirmed, on another node; otherwise the request is refused.
"""
LOG_MODE = "TOQUE_LOG_MODE"
"""Environment variable that names the mode."""
_WORKSPACES = "workspaces"


def segments_of(folder: Path) -> list[tuple[int, Path]]:
    """List the segments in a writer's folder as (first record number, path), oldest first."""
    return sorted((int(path.stem), path) for path in folder.glob("*.wal"))


def is_writers_folder(folder: Path) -> bool:
    """Whether a folder is one of a writer's: it has a lock and, beside that, segments only."""
    try:
        names = {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return False
    return "lock" in names and all(re.fullmatch(r"[0-9]+\.wal", name) for name in names - {"lock"})


def claim(folder: Path) -> int | None:
    """Take the lock of a writer's folder: a file descriptor that holds it, or None if its writer lives."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    if lock(handle, wait=False):
        return handle
    os.close(handle)
    return None


class WriteAheadLog:
    """Log of the numbered records of one writer, appended by any thread, read by one shipper.

    folder: the folder for this kind of record; the writer makes its own folder below it.
    limit_bytes: the bound on what is kept; `append` refuses beyond it.
    segment_bytes: the size of a file, taken at once; larger ones would delay responses for longer when one is begun
        (3 ms for 8 MiB were measured). Whole files are dropped once they are drained.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = 1 << 30,
        segment_bytes: int = 1 << 20,
        fsync: bool = False,
    ) -> None:
        self.limit_bytes, self.segment_bytes, self._fsync = limit_bytes, segment_bytes, fsync
        self.writer, self.folder, self._lock_fd = _new_writer(folder)
        self.last = 0
        self.notify: Callable[[], object] | None = None
        """Called once by the next record that is written, and then forgotten; how an idle reader is woken."""
        self._mutex = threading.Lock()
        self._reader = SegmentReader()
        self._segments: list[tuple[int, Path]] = []
        self._sealed_bytes = 0
        self._fd = -1  # file descriptor of the newest segment, -1 without one
        self._map: mmap.mmap | None = None
        self._end = self._until = 0  # end of its content, and how far it may be filled
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """Size of the records that are kept."""
        return self._sealed_bytes + self._end

    def append(self, payload: bytes) -> int:
        """Write one record and return its number; it survives a killed process from then on.

        Raises: LogFullError if the bound is reached or the disk is full; nothing is left behind then.
        """
        with self._mutex:
            return self._put(encode_frame(self.last + 1, payload), 1)

    def extend(self, payloads: Sequence[bytes]) -> int:
        """Write several records, all or none, with one fsync; returns the number of the last."""
        with self._mutex:
            frames = [encode_frame(number, payload) for number, payload in enumerate(payloads, self.last + 1)]
            return self._put(b"".join(frames), len(frames)) if frames else self.last

    def _put(self, frames: bytes, count: int) -> int:
        size = len(frames)
        if self._end + size > self._until:
            self._make_room(size)
        end = self._end + size
        self._map[self._end : end] = frames  # type: ignore[index]  # there is one, since there is room in it
        self._end, self.last = end, self.last + count
        if self._fsync:
            self._force(size, count)
        if self.notify is not None:
            notify, self.notify = self.notify, None
            notify()
        return self.last

    def _make_room(self, size: int) -> None:
        """Make sure that the newest segment has room for so many bytes more."""
        if self.size_bytes + size > self.limit_bytes:
            raise LogFullError(
                f"{self.folder}: {self.size_bytes} bytes wait to be drained, the bound is {self.limit_bytes}; "
                "bring Redis and the drain back, or raise the bound"
            )
        if self._map is None or self._end + size > len(self._map):
            self._roll(max(size, self.segment_bytes))
        self._bound()

    def _bound(self) -> None:
        """Set how far the newest segment may be filled, within the bound on all segments."""
        room = 0 if self._map is None else len(self._map)
        self._until = min(room, self.limit_bytes - self._sealed_bytes)

    def _force(self, size: int, count: int) -> None:
        """Force the last records, of so many bytes, to the disk; on failure they are removed."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._end, self.last = self._end - size, self.last - count
            self._map[self._end : self._end + size] = bytes(size)  # type: ignore[index]  # it was just written to
            raise LogFullError(f"{self.folder}: cannot write: {error}; free space there") from error

    def _roll(self, room: int) -> None:
        """Begin a segment of so many bytes, all allocated on the disk now."""
        if self._closed:
            raise ValueError(f"{self.folder}: this log is closed")
        if (
            self._map is not None and self._end == 0
        ):  # the disk refused its first records: the next segment has its name
            self._finish()
            self._segments.pop()[1].unlink()
        path = self.folder / f"{self.last + 1:020d}.wal"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(fd, 0, room)
                place = mmap.mmap(fd, room)
            except OSError:
                os.close(fd)
                path.unlink()
                raise
        except OSError as error:
            raise LogFullError(
                f"{self.folder}: cannot take {room} bytes: {error}; free space there"
            ) from error
        self._finish()
        self._fd, self._map = fd, place
        self._segments.append((self.last + 1, path))

    def _finish(self) -> None:
        """End the newest segment by truncating its file to its content."""
        if self._map is not None:
            self._map.close()
            os.ftruncate(self._fd, self._end)
            os.close(self._fd)
            self._sealed_bytes += self._end
            self._fd, self._map, self._end, self._until = -1, None, 0, 0

    def read_after(self, number: int, *, chunk_bytes: int = CHUNK_BYTES) -> Chunk | None:
        """Read the next records after `number`, about `chunk_bytes` of them; None if there are no more.

        Meant for one reader: it remembers where it stopped.
        """
        if number >= self.last:
            return None
        with self._mutex:
            segments, last, end = list(self._segments), self.last, self._end
            if self._map is None:  # the newest segment has ended
                end = segments[-1][1].stat().st_size if segments else 0
            elif self._reader.is_near(segments[-1][1], number, end, chunk_bytes):
                return self._reader.take(self._map[self._reader.offset : end], last)
        return self._reader.read(segments, number, chunk_bytes=chunk_bytes, newest=(last, end))

    def forget(self, number: int) -> None:
        """Drop whole segments in which every record is drained, that is, numbered at most `number`."""
        with self._mutex:
            if self._closed:
                return
            if number >= self.last:
                self._finish()
            finished = self._segments if self._map is None else self._segments[:-1]
            firsts = [*(first for first, _ in self._segments[1:]), self.last + 1]
            for (_, path), following in zip(list(finished), firsts, strict=False):
                if following - 1 > number:
                    break
                del self._segments[0]
                self._sealed_bytes -= path.stat().st_size
                path.unlink()
            self._bound()

    def rotate(self) -> int:
        """Begin a new segment with the next record, so that all present ones can be dropped; returns the last number."""
        with self._mutex:
            if not self._closed and self._end:
                self._finish()
            return self.last

    @property
    def oldest(self) -> int:
        """Number of the oldest record that is kept; one past the last if there are none."""
        with self._mutex:
            return self._segments[0][0] if self._segments else self.last + 1

    def close(self) -> None:
        """Stop writing and release the lock; undrained records stay for an adopter."""
        with self._mutex:
            if not self._closed:
                self._finish()
                os.close(self._lock_fd)
                self._closed = True


def _new_writer(kind: Path) -> tuple[str, Path, int]:
    """Make a writer's folder and take its lock; another name if an adopter was quicker."""
    while True:
        writer = uuid.uuid4().hex
        folder = private_folder(kind / writer)
        lock = claim(folder)
        if lock is not None:
            return writer, folder, lock


class SegmentReader:
    """Reads chunks of whole frames from segments, and remembers where the last one ended.

    Frames are walked one by one only to find a place it does not remember, or to cut a long backlog: walking
    them holds the interpreter's lock, for which the answering thread would wait. So does every call of the kernel, when it ends.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._number = -1
        self.offset = 0
        """Offset at which the next chunk begins."""

    def read(
        self,
        segments: list[tuple[int, Path]],
        number: int,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        newest: tuple[int, int] | None = None,
    ) -> Chunk | None:
        """Read the next whole frames after `number` in these segments; None if there are no more.

        newest: the last record's number and the end of the newest segment, where they are known.
        """
        for i, (_, path) in enumerate(segments):
            following = segments[i + 1][0] if i + 1 < len(segments) else None
            if following is not None and following - 1 <= number:
                continue
            ends = (following - 1, path.stat().st_size) if following is not None else newest
            chunk = self._read(path, number, chunk_bytes, ends)
            if chunk is not None:
                return chunk
        return None

    def is_near(self, path: Path, number: int, end: int, chunk_bytes: int) -> bool:
        """Whether a segment's records after `number` begin where the last chunk ended and fit into one chunk."""
        return (path, number) == (self._path, self._number) and end - self.offset <= chunk_bytes

    def take(self, data: bytes, last: int) -> Chunk:
        """Take the bytes from `offset` to the end of record `last` as a chunk."""
        first, self._number = self._number + 1, last
        self.offset += len(data)
        return data, first, last

    def _read(self, path: Path, number: int, chunk_bytes: int, ends: tuple[int, int] | None) -> Chunk | None:
        if ends is not None and self.is_near(path, number, ends[1], chunk_bytes):
            with path.open("rb") as file:
                return self.take(os.pread(file.fileno(), ends[1] - self.offset, self.offset), ends[0])
        known = (path, number) == (self._path, self._number)
        return self._walk(path, self.offset if known else 0, number, chunk_bytes, ends)

    def _walk(
        self, path: Path, offset: int, number: int, chunk_bytes: int, ends: tuple[int, int] | None
    ) -> Chunk | None:
        """Walk frame by frame, never past a known end, behind which a record may be half written."""
        for data in _windows(path, offset, number, chunk_bytes, ends[1] if ends is not None else sys.maxsize):
            start, end, first, last = whole_frames(data, after=number)
            offset += end
            if last:
                self._path, self.offset, self._number = path, offset, last
                return data[start:end], first, last
        return None


def _windows(path: Path, at: int, number: int, chunk_bytes: int, limit: int) -> Iterator[bytes]:
    """Yield successive pieces of a segment from a frame's start up to `limit`, until one holds a frame after `number`."""
    size = chunk_bytes
    with path.open("rb") as file:
        while len(data := os.pread(file.fileno(), min(size, limit - at), at)) >= HEADER_BYTES:
            _, end, _, last = whole_frames(data, after=number)
            if end == 0 and len(data) == size:
                size *= 2  # a frame larger than the window
                continue
            yield data
            if last or end == 0:
                return
            at += end


def recover(folder: Path) -> int:
    """Cut the torn end off a dead writer's last segment; returns the number of its last whole record.

    A record that is damaged with others behind it stays in its file, and `intact_records` passes it over.
    """
    segments, last = segments_of(folder), 0
    for first, path in segments:
        last, end = max(last, first - 1), 0
        for frame in intact_frames(path.read_bytes(), first):
            end, last = frame.end, frame.number
        if path == segments[-1][1] and end < path.stat().st_size:
            os.truncate(path, end)
    return last


def intact_records(folder: Path, after: int) -> Iterator[Frame]:
    """Read the records of a dead writer with numbers above `after` that are not damaged."""
    segments = segments_of(folder)
    for i, (first, path) in enumerate(segments):
        if i + 1 == len(segments) or segments[i + 1][0] - 1 > after:
            yield from (frame for frame in intact_frames(path.read_bytes(), first) if frame.number > after)


def default_wal_root(store_url: str, folder: str | Path | None = None) -> Path:
    """Derive the folder from the URL of a workspace's store, so that all its processes on this machine agree.

    folder: of the whole platform; by default beside its store if that is a folder, else in this user's temporary folder.
    A workspace other than the default one has a folder of its own there.
    Raises: Forbidden if another user made the temporary folder first.
    """
    platform_url, workspace = split_workspace_url(store_url)
    root = Path(folder) if folder is not None else _platform_root(platform_url)
    return root if workspace == DEFAULT_WORKSPACE else root / _WORKSPACES / workspace


def _platform_root(store_url: str) -> Path:
    parts = urlsplit(store_url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        return path.with_name(f"{path.name}-wal")
    digest = hashlib.sha256(store_url.encode()).hexdigest()[:16]
    return temporary_folder(f"wal-{digest}")


def roots_beside(root: Path, workspace: str) -> list[tuple[str, Path]]:
    """List all workspaces of a platform that have a folder on this machine, with these, by the folder of one of them."""
    platform = root if workspace == DEFAULT_WORKSPACE else root.parents[1]
    others = platform / _WORKSPACES
    names = sorted(path.name for path in others.iterdir()) if others.is_dir() else []
    return [(DEFAULT_WORKSPACE, platform), *((name, others / name) for name in names)]


def log_mode_of(name: str) -> LogMode:
    """Check the name of a mode; an empty one is `file`.

    Raises: ValueError for another word.
    """
    found = name or "file"
    if found not in get_args(LogMode):
        raise ValueError(f"{LOG_MODE}={found!r}: use one of {', '.join(get_args(LogMode))}")
    return cast("LogMode", found)


__all__ = [
    "CHUNK_BYTES",
    "LOG_MODE",
    "Chunk",
    "LogMode",
    "SegmentReader",
    "WriteAheadLog",
    "claim",
    "default_wal_root",
    "intact_records",
    "is_writers_folder",
    "log_mode_of",
    "recover",
    "roots_beside",
    "segments_of",
]
