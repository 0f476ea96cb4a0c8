"""Capture of what a process prints and logs while it runs a durable invocation.

Standard output and error are replaced by streams that write every line to the original, secrets masked, and
record it; a logging handler does so from level INFO on. What C code or a subprocess writes is not captured.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from toque.functions.runtime.context import context
from toque.functions.runtime.run.log import Recorder, Source
from toque.functions.runtime.secret import redact

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
