"""Handle to a run of a training: logs are buffered and stored as segments."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import uuid4

from toque.registry.errors import InvalidInput, RegistryError
from toque.registry.runs.environment import Usage
from toque.registry.runs.record import Point, RunRecord, Segment, Status, with_segments
from toque.registry.store import TableSnapshot

if TYPE_CHECKING:
    from toque.registry.runs.run_store import RunStore

FLUSH_EVERY_S = 2.0
BEAT_EVERY_S = 10.0
_MAX_POINTS = 20_000
_logger = logging.getLogger(__name__)


class Run:
    """Handle that logs to a run and reads it. Picklable: a copy in another process logs to the same run.

    Logged values are stored within two seconds, or by `flush`, or when the run ends. `with` ends the run:
    FINISHED, or FAILED if the block raises. Safe for threads. A handle that did not start the run (from
    `get_run`, or unpickled in a worker) stores at once what is logged after a pause, so that
    `reg.get_run(id).log_metrics(…)` in a short task is not lost; in a loop, end with `flush`.
    """

    def __init__(self, runs: RunStore, record: RunRecord, *, segments: int = 0, owner: bool = False) -> None:
        self._runs = runs
        self._record = record
        self._segments = segments
        self._owner = owner
        self._buffer = Segment()
        self._pending: tuple[Segment, bytes] | None = None
        self._buffer_lock = threading.Lock()
        self._store_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._usage = Usage.now()
        self._stored_at = -FLUSH_EVERY_S
        if owner:
            self._start_thread()

    def __reduce__(self) -> tuple[Any, ...]:
        self.flush()
        return _attach, (self._runs, self._record, self._segments)

    def __repr__(self) -> str:
        return f"Run({self.id!r} of {self._record.experiment!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.set_tags({"error": f"{type(error).__name__}: {error}"[:1000]})
            self.finish("FAILED")

    @property
    def id(self) -> str:
        """Id of the run, for `Registry.get_run`."""
        return self._record.id

    @property
    def experiment(self) -> str:
        """Name of the run's experiment."""
        return self._record.experiment

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters as text; a parameter has one value.

        Raises: InvalidInput if this handle logged another value for one of them.
        """
        texts = {str(name): str(value) for name, value in params.items()}
        with self._buffer_lock:
            for name, text in texts.items():
                before = self._record.params.get(name, self._buffer.params.get(name, text))
                if before != text:
                    raise InvalidInput(
                        f"param {name!r} is {before!r} already, not {text!r}; start another run"
                    )
            self._buffer.params.update(texts)
        self._after_logging()

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Record values of metrics at a step (numbers; NaN and infinities too).

        Raises: InvalidInput for a value that is no number.
        """
        at = self._runs.clock()
        try:
            points = [(str(name), Point(int(step), float(value), at)) for name, value in metrics.items()]
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"metrics={dict(metrics)!r} at step={step!r}: {error}") from error
        with self._buffer_lock:
            self._buffer.points.extend(points)
            full = len(self._buffer.points) >= _MAX_POINTS
        if full:
            self.flush()
        self._after_logging()

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        """Record one value of a metric. Raises: InvalidInput."""
        self.log_metrics({name: value}, step)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Add or replace tags of the run."""
        with self._buffer_lock:
            self._buffer.tags.update({str(name): str(value) for name, value in tags.items()})
        self._after_logging()

    def log_datasets(self, *snapshots: TableSnapshot) -> None:
        """Record the table versions that the run reads."""
        with self._buffer_lock:
            self._buffer.datasets.extend(snapshots)
        self._after_logging()

    def log_artifact(self, path: str | Path, to: str = "") -> None:
        """Store a file, or the files of a folder, with the run, below `to`; replaces one of the same path.

        Raises: InvalidInput if there is no such file.
        """
        source = Path(path)
        files = sorted(item for item in source.rglob("*") if item.is_file()) if source.is_dir() else [source]
        for file in files:
            if not file.is_file():
                raise InvalidInput(f"artifact {str(file)!r} is not a file")
            name = file.relative_to(source).as_posix() if source.is_dir() else file.name
            self._log_file(file, str(PurePosixPath(to) / name))
        self._after_logging()

    def flush(self) -> None:
        """Store buffered events now; 1 write if there are any. Raises: Unavailable, keeping the buffer."""
        with self._store_lock:
            while self._next_segment() is not None:
                segment, data = cast("tuple[Segment, bytes]", self._pending)
                self._segments = self._runs.store_segment(self.id, self._segments, data)
                self._pending = None
                self._stored_at = time.monotonic()
                self._record = with_segments(self._record, [segment])

    def finish(self, status: Status = "FINISHED") -> None:
        """Store buffered events and end the run. Raises: Unavailable; call it again then."""
        self._stop_thread()
        self.flush()
        if self._owner:
            self._record = replace(
                self._record, facts={**self._record.facts, "resources": self._usage.since()}
            )
        self._record = self._runs.end(self._record, status)

    def record(self) -> RunRecord:
        """Read everything logged to the run by any writer; `metrics` are last values."""
        self.flush()
        return self._runs.get_record(self.id)

    def series(self, metric: str) -> list[Point]:
        """Read all values of a metric in the order of steps; empty if it was never logged."""
        self.flush()
        points = (
            point
            for segment in self._runs.segments(self.id)
            for name, point in segment.points
            if name == metric
        )
        return sorted(points, key=lambda point: (point.step, point.at))

    def download_artifact(self, path: str, to: str | Path) -> Path:
        """Write one artifact below the folder `to`, its digest checked; returns the file.

        Raises: NotFound; Damaged.
        """
        return self._runs.fetch_artifact(self.record(), path, Path(to) / path)

    def _next_segment(self) -> tuple[Segment, bytes] | None:
        """Next segment to store: one that failed before, with the same bytes, or else the buffer."""
        with self._buffer_lock:
            if self._pending is None and self._buffer:
                self._pending = self._buffer, self._buffer.to_bytes(nonce=uuid4().hex)
                self._buffer = Segment()
            return self._pending

    def _log_file(self, file: Path, path: str) -> None:
        blob = self._runs.store_artifact(self.id, path, file)
        with self._buffer_lock:
            self._buffer.artifacts[path] = blob

    def _after_logging(self) -> None:
        """Ensure that the buffer gets stored: now after a pause, else by the thread."""
        if not self._owner and time.monotonic() - self._stored_at >= FLUSH_EVERY_S:
            self.flush()
        self._start_thread()

    def _start_thread(self) -> None:
        """Start the daemon that stores the buffer every two seconds and sends the owner's heartbeat."""
        with self._buffer_lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(
                    target=self._flush_periodically, name=f"run-{self.id}", daemon=True
                )
                self._thread.start()

    def _stop_thread(self) -> None:
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _flush_periodically(self) -> None:
        last_beat = time.monotonic()
        while not self._stop.wait(FLUSH_EVERY_S):
            try:
                self.flush()
                if self._owner and time.monotonic() - last_beat >= BEAT_EVERY_S:
                    self._runs.beat(self.id)
                    last_beat = time.monotonic()
            except RegistryError as error:
                _logger.warning("run %s: not stored yet, will try again: %s", self.id, error)
            if not self._owner and self._is_idle():
                return

    def _is_idle(self) -> bool:
        """Whether the daemon may end because the buffer is empty; the next log call starts another."""
        with self._buffer_lock:
            if self._buffer or self._pending:
                return False
            self._thread = None
            return True


def _attach(runs: RunStore, record: RunRecord, segments: int) -> Run:
    return Run(runs, record, segments=segments)
