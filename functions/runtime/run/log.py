"""Logs of durable invocations: lines in the store, written in segments while the run goes on.

Lines are collected for half a second, or 64 KiB, and written as one object. Its name begins with the time of
writing, so that the segments of every process that worked on an invocation sort into one log. A killed
process loses the lines since its last segment. A run without output writes nothing.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from toque.functions.runtime.secret import redact
from toque.registry.errors import Unavailable
from toque.registry.store import ObjectStore
from toque.registry.times import utc_now

FLUSH_S = 0.5
SEGMENT_BYTES = 64 << 10
LINE_CHARACTERS = 8 << 10
PENDING_BYTES = 4 << 20  # held while the store is unavailable; further lines are dropped, and counted
TOTAL_BYTES = 64 << 20  # of one process; further lines are dropped as well
CLOSE_S = 5.0
OVERLAP_MS = 10_000

Source = Literal["stdout", "stderr", "log"]


class Line(BaseModel, frozen=True):
    """Line that a run of `function` printed or logged."""

    at: datetime
    function: str
    source: Source
    text: str


class Segment(BaseModel, frozen=True):
    """Lines that one process wrote together, in order. name: sorts by time; reading continues after it."""

    name: str
    lines: list[Line]


class Progress(BaseModel, frozen=True):
    """Progress of a run: `done` of `total`, in any unit, and a text about it."""

    done: float
    total: float
    text: str
    at: datetime


class Recorder:
    """Writer of one process's lines and progress for an invocation, in a thread of its own."""

    def __init__(self, store: ObjectStore, invocation: str, function: str) -> None:
        self._store = store
        self._invocation = invocation
        self._function = function
        self._total_bytes = 0
        self._newest_ms = 0
        self._closed = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Start empty in a forked process: pending lines and held locks are its parent's."""
        self._writer = uuid.uuid4().hex[:8]
        self._pending: deque[bytes] = deque()
        self._pending_bytes = self._dropped = self._segments = 0
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def line(self, source: Source, text: str) -> None:
        """Record a line, secrets masked; characters past 8,192 are cut off."""
        shown = redact(text)
        if len(shown) > LINE_CHARACTERS:
            shown = f"{shown[:LINE_CHARACTERS]}… ({len(shown) - LINE_CHARACTERS} more characters)"
        kept = Line(at=utc_now(), function=self._function, source=source, text=shown)
        full = self._add(kept.model_dump_json().encode())
        if full and not self.busy:
            self._flush()  # a run that writes this much waits for the store

    def progress(self, done: float, total: float, text: str) -> None:
        """Record how far the run is; of several calls within half a second only the last is written."""
        with self._lock:
            self._progress = Progress(done=done, total=total, text=redact(text), at=utc_now())
        self._ensure_thread()

    def close(self) -> None:
        """Write what is pending, trying for five seconds at most if the store is unavailable."""
        self._closed.set()
        if self._thread is None:
            return
        self._thread.join()
        deadline = time.monotonic() + CLOSE_S
        while not self._flush() and time.monotonic() < deadline:
            time.sleep(FLUSH_S)

    @property
    def busy(self) -> bool:
        """Whether this thread is writing: what the store itself logs meanwhile is not recorded."""
        return _writer_mark.active

    def _add(self, line: bytes) -> bool:
        with self._lock:
            if self._pending_bytes + len(line) > PENDING_BYTES or self._total_bytes + len(line) > TOTAL_BYTES:
                self._dropped += 1
                return False
            self._pending.append(line)
            self._pending_bytes += len(line)
            self._total_bytes += len(line)
            full = self._pending_bytes >= SEGMENT_BYTES
        self._ensure_thread()
        return full

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_S):
            self._flush()

    def _flush(self) -> bool:
        """Write everything pending; returns whether the store was available."""
        with self._writing, _writer_mark:
            try:
                self._write_progress()
                while lines := self._next_batch():
                    self._write(lines)
            except Unavailable:
                return False
            return True

    def _next_batch(self) -> list[bytes]:
        with self._lock:
            lines: list[bytes] = []
            size = 0
            for each in self._pending:
                if lines and size + len(each) > SEGMENT_BYTES:
                    break
                lines.append(each)
                size += len(each)
            if not lines and self._dropped:
                lines.append(self._dropped_notice())
            return lines

    def _dropped_notice(self) -> bytes:
        text = f"… {self._dropped} lines were left out: more than is kept of one process"
        line = Line(at=utc_now(), function=self._function, source="stderr", text=text)
        return line.model_dump_json().encode()

    def _write(self, lines: list[bytes]) -> None:
        """Put a segment into the store, and only then forget its lines."""
        self._newest_ms = max(self._newest_ms, int(time.time() * 1000))
        name = f"{self._newest_ms:013d}-{self._writer}-{self._segments:06d}"
        self._store.put(f"{_folder(self._invocation)}{name}.jsonl", b"\n".join(lines))
        self._segments += 1
        with self._lock:
            if not self._pending:
                self._dropped = 0
            for each in lines[: len(self._pending)]:
                self._pending.popleft()
                self._pending_bytes -= len(each)

    def _write_progress(self) -> None:
        progress, key = self._progress, progress_key(self._invocation)
        if progress is not None:
            self._store.put(key, progress.model_dump_json().encode())
            with self._lock:
                self._progress = None if self._progress is progress else self._progress


class _WriterMark(threading.local):
    """Thread-local mark of the thread that writes."""

    active = False

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *_: object) -> None:
        self.active = False


_writer_mark = _WriterMark()


def read_log(store: ObjectStore, invocation: str, *, after: str = "") -> Iterator[Segment]:
    """Read the log of an invocation so far, by time: one listing, and one read for each segment.

    after: name of a segment; only later ones are read. A segment of another process may still appear a moment
    before.
    """
    folder = _folder(invocation)
    for key in store.list(folder, after=f"{folder}{after}.jsonl" if after else ""):
        data = store.find(key)
        if data:
            lines = [Line.model_validate_json(each) for each in data.splitlines()]
            yield Segment(name=key.removeprefix(folder).removesuffix(".jsonl"), lines=lines)


class Tail:
    """Follower of a log, which yields each line once.

    read: returns some segments after the named one, or an empty list at the end.
    """

    def __init__(self, read: Callable[[str], list[Segment]]) -> None:
        self._read = read
        self._seen: set[str] = set()
        self._newest_ms = 0

    def new_lines(self) -> Iterator[Line]:
        """Yield the lines added since the last call.

        Reading starts a little before the newest segment: another process may have named its own by an
        earlier moment.
        """
        after = f"{max(0, self._newest_ms - OVERLAP_MS):013d}"
        while segments := self._read(after):
            for each in segments:
                if each.name not in self._seen:
                    self._seen.add(each.name)
                    yield from each.lines
            after = segments[-1].name
            self._newest_ms = int(after.partition("-")[0])


def find_progress(store: ObjectStore, invocation: str) -> Progress | None:
    """Find the last progress that an invocation reported; None if it has not."""
    with suppress(Unavailable):  # a progress bar that stops for a moment is not an error
        data = store.find(progress_key(invocation))
        return Progress.model_validate_json(data) if data else None
    return None


def progress_key(invocation: str) -> str:
    """Return the key of an invocation's progress."""
    return f"invocations/{invocation}/progress.json"


def _folder(invocation: str) -> str:
    return f"invocations/{invocation}/logs/"
