"""Logs of durable invocations: what a run prints and logs, written to the store in segments while it goes on.

Lines are collected for half a second, or 64 KiB, and written as one object. Its name begins with the time of writing, so that
the segments of every process that worked on an invocation sort into one log. A killed process loses the lines since its last
segment. A run without output writes nothing.
Standard output and error are replaced by streams that write every line to the original, secrets masked, and record it; a
logging handler does so from level INFO on. What C code or a subprocess writes is not captured.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from typing import Any, Literal, TextIO

from pydantic import BaseModel

from toque.functions.runtime.context import context
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


_recorder: Recorder | None = None


@contextmanager
def captured(function: str, *, secrets: Sequence[str] = ()) -> Iterator[None]:
    """Record output within the block, if the context names an invocation and no recorder is active yet.

    secrets: if there are any, they are masked in what the function prints, recorded or not. Only in the main
    thread, since the streams belong to the whole process.
    """
    global _recorder  # noqa: PLW0603  # a process has one standard output
    used, alone = context(), threading.current_thread() is threading.main_thread()
    if used.invocation is None or _recorder is not None or not alone:
        with _streams(None) if secrets and alone and _recorder is None else nullcontext():
            yield
        return
    _recorder = recorder = Recorder(used.store, used.invocation, function)
    try:
        with _streams(recorder), _logging(recorder):
            yield
    finally:
        _recorder = None
        recorder.close()


def log_text(text: str) -> None:
    """Add lines to the log of the invocation that this process runs; without one they are dropped."""
    if _recorder is not None:
        for line in text.splitlines():
            _recorder.line("log", line)


def report_progress(done: float, total: float = 1.0, text: str = "") -> None:
    """Record how far this durable run is; does nothing outside of one.

    done, total: in any unit, as rows or epochs; with the default total, a fraction. text: shown beside the
    bar. Raises: ValueError unless 0 <= done <= total.
    """
    if not (total > 0 and 0 <= done <= total):
        raise ValueError(f"done={done!r} must be between 0 and total={total!r}, which must be above 0")
    if _recorder is not None:
        _recorder.progress(done, total, text)


@contextmanager
def _streams(recorder: Recorder | None) -> Iterator[None]:
    out, err = _Tee(sys.stdout, "stdout", recorder), _Tee(sys.stderr, "stderr", recorder)
    with ExitStack() as stack:
        stack.callback(err.finish)
        stack.callback(out.finish)
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        yield


@contextmanager
def _logging(recorder: Recorder) -> Iterator[None]:
    root = logging.getLogger()
    handler = _Handler(recorder, echo=None if root.handlers else logging.lastResort)
    level = root.level
    root.addHandler(handler)
    if level == logging.WARNING:  # nobody has chosen a level
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


class _Handler(logging.Handler):
    """Logging handler that records log records. echo: the handler that showed warnings before."""

    def __init__(self, recorder: Recorder, *, echo: logging.Handler | None) -> None:
        super().__init__()
        self._recorder = recorder
        self._echo = echo
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Record a log record, and echo a warning that would have been shown."""
        if self._recorder.busy:
            return
        text = redact(self.format(record))
        for line in text.splitlines():
            self._recorder.line("log", line)
        if self._echo and record.levelno >= self._echo.level:
            sys.__stderr__ and sys.__stderr__.write(f"{text}\n")


class _Tee(io.TextIOBase):
    """Stream that writes whole lines to the original and records them, after the last carriage return."""

    def __init__(self, original: TextIO, source: Source, recorder: Recorder | None) -> None:
        self._original = original
        self._source = source
        self._recorder = recorder
        self.reset()

    def reset(self) -> None:
        """Forget the incomplete line, and replace the lock."""
        self._partial = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Take some text; an incomplete line waits for its end."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            for line in lines:
                self._emit(line)
        return len(text)

    def finish(self) -> None:
        """Write the incomplete line, if there is one."""
        with self._lock:
            if self._partial:
                self._emit(self._partial)
            self._partial = ""

    def flush(self) -> None:
        """Flush the stream that is captured."""
        self._original.flush()

    def writable(self) -> bool:
        """Whether the stream accepts writes; always true, as `io` expects."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the captured stream, for subprocesses."""
        return self._original.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def _emit(self, line: str) -> None:
        shown = redact(line)
        self._original.write(f"{shown}\n")
        if self._recorder:
            self._recorder.line(self._source, shown.rstrip("\r").rpartition("\r")[2])


def _reset_in_child() -> None:
    """Replace the locks in a child that the body forked: another thread may have held them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Tee):
            stream.reset()
    if _recorder is not None:
        _recorder.reset()


os.register_at_fork(after_in_child=_reset_in_child)
