"""Handle to a run of a training, its environment, and the log of a run that another program logs through a protocol.

A handle buffers logs and stores them as segments; each call of a protocol is stored before it returns. A run of another
program has no owner process here and no heartbeat: it is running until the program ends it. Events logged to an ended
run (a tag of a later review) are written to the experiment's index at once.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import uuid4

from toque.registry.errors import InvalidInput, RegistryError
from toque.registry.names import check_name
from toque.registry.runs.record import Point, RunRecord, Segment, Status, new_run_id, with_segments
from toque.registry.store import TableSnapshot

if TYPE_CHECKING:
    from toque.registry.runs.record import RunStore


FLUSH_EVERY_S = 2.0
BEAT_EVERY_S = 10.0
_MAX_POINTS = 20_000
_GIT_TIMEOUT_S = 2.0
_BROUGHT = "TOQUE_RUN_ENVIRONMENT"  # what the executor starts a run's processes with, as JSON
_PACKAGES = ("ray", "torch", "numpy", "pyarrow", "polars", "scikit-learn", "deltalake")
_COUNTED = "segments"  # a fact: how many segments the index's record contains
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
            stored_as = str(PurePosixPath(to) / name)
            blob = self._runs.store_artifact(self.id, stored_as, file)
            with self._buffer_lock:
                self._buffer.artifacts[stored_as] = blob
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


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Collect facts about this process as JSON, once a process."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "command": sys.argv[:1],
        "packages": {name: version for name in (*_PACKAGES, *_brought()) if (version := _version(name))},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        facts["git"] = {"commit": commit, "dirty": bool(_git("status", "--porcelain", "-uno"))}
    return facts


@dataclass(frozen=True, slots=True)
class Usage:
    """Clock and CPU seconds that this process and its children had used at a moment."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> Usage:
        """Measure what this process has used so far."""
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.monotonic(), sum(part.ru_utime + part.ru_stime for part in (own, children)))

    def since(self) -> dict[str, float]:
        """Report what was used from then to now, and the process's peak memory."""
        now = Usage.now()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "wall_s": round(now.wall_s - self.wall_s, 3),
            "cpu_s": round(now.cpu_s - self.cpu_s, 3),
            "peak_memory_bytes": peak_bytes,
        }


def _brought() -> list[str]:
    """Names of the packages that a submission brought into this process."""
    brought = json.loads(os.environ.get(_BROUGHT) or "{}")
    return [package.partition("==")[0] for package in brought.get("packages", ())]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Run git in the working folder; "" where git or a repository is absent."""
    command = ["git", *arguments]  # found on PATH: the user's own git
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class RunLog:
    """Writer of one remote run, usable from any number of processes. Safe for threads."""

    def __init__(self, runs: RunStore, record: RunRecord, *, segments: int = 0) -> None:
        self._runs = runs
        self._record = record
        self._segments = segments
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        runs: RunStore,
        experiment: str,
        *,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        started_at: datetime | None = None,
        parent: str | None = None,
    ) -> RunLog:
        """Begin a remote run; 2 writes and 1 read.

        started_at: as reported by its program; None: now. parent: id of the run this one is part of.
        Raises: InvalidInput for a malformed experiment name.
        """
        facts = {"remote": True, "parent": parent}
        record = RunRecord(
            id=new_run_id(),
            experiment=check_name(experiment, what="experiment"),
            name=name,
            status="RUNNING",
            actor=runs.actor,
            started_at=started_at or runs.clock(),
            params=dict(params or {}),
            tags=dict(tags or {}),
            facts={fact: value for fact, value in facts.items() if value is not None},
        )
        runs.begin(record)
        return cls(runs, record)

    @classmethod
    def of(cls, runs: RunStore, run_id: str) -> RunLog:
        """Open the log of a run that has begun. Raises: NotFound."""
        record = runs.get_record(run_id)
        return cls(runs, record, segments=sum(1 for _ in runs.store.list(f"runs/{run_id}/segments/")))

    @property
    def record(self) -> RunRecord:
        """Record of the run as this object knows it; `RunStore.get_record` has other writers' events too."""
        return self._record

    def write(self, segment: Segment) -> None:
        """Store the events of one call; 1 write and 1 read, and 1 write more if the run had ended.

        Raises: InvalidInput if a parameter has another value already; Unavailable: call again.
        """
        with self._lock:
            for name, text in segment.params.items():
                before = self._record.params.get(name, text)
                if before != text:
                    raise InvalidInput(
                        f"param {name!r} of run {self._record.id} is {before!r} already, not {text!r}; "
                        "start another run"
                    )
            data = segment.to_bytes(nonce=uuid4().hex)
            self._segments = self._runs.store_segment(self._record.id, self._segments, data)
            self._record = with_segments(self._record, [segment])
            indexed = self._indexed()
            if indexed.status != "RUNNING":
                self._update_index(indexed)

    def change(
        self, *, status: Status | None = None, name: str | None = None, ended_at: datetime | None = None
    ) -> RunRecord:
        """Change the run's status or name; RUNNING resumes an ended run. 1 write, 1 read and its segments.

        ended_at: as reported by its program; None: now.
        """
        with self._lock:
            record = self._indexed()
            if name is not None:
                record = replace(record, name=name)
            if status == "RUNNING":
                record = replace(record, status=status, ended_at=None)
            elif status is not None:
                record = replace(record, status=status, ended_at=ended_at or self._runs.clock())
            return self._update_index(record)

    def _indexed(self) -> RunRecord:
        """Record of the run in the index."""
        return self._runs.index(self._record.experiment).refresh().get(self._record.id, self._record)

    def _update_index(self, record: RunRecord) -> RunRecord:
        """Write the run to the index with all its segments.

        Segments that the index contains are not read again, unless new metric values must be ordered among theirs.
        """
        counted = int(record.facts.get(_COUNTED, 0))
        new = list(self._runs.segments(record.id, counted))
        if counted and any(segment.points for segment in new):
            counted, new = 0, list(self._runs.segments(record.id))
        whole = with_segments(record, new)
        whole = replace(whole, facts={**whole.facts, _COUNTED: counted + len(new)})
        kind = "started" if whole.status == "RUNNING" else "ended"
        self._runs.index(record.experiment).transact(lambda _: {"kind": kind, "run": whole.brief()})
        self._record = whole
        return whole
