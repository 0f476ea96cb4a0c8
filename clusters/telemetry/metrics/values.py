"""Values of Prometheus series that live in files of this process, so that its death loses none of them.

A process maps one file for each kind of series; an increment is a write to that memory, which the kernel keeps
whatever becomes of the process. prometheus_client has such values, too, but chooses them once, by an environment
variable that Ray's processes would inherit; and it maps files with holes, so that a full disk kills the process.

A process lives as long as it holds a lock on a file that bears its name. The kernel lets go of it when the process
dies, however it does, so nobody compares process numbers, which are used again.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Summary, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from toque.clusters.file_lock import file_lock, lock

PREFIX = "toque_"
SUFFIX = ".db"
PUBLISHED = ".prom"
"""Suffix of files of gauges that a process replaces as a whole."""
_LOCK_SUFFIX = ".lock"
_FOLDER_LOCK = "folder.flock"
_FIRST_BYTES = 1 << 16  # of a file
_logger = logging.getLogger(__name__)


class _ReservedFile(MmapedDict):
    """File of values whose blocks are reserved before they are mapped: a full disk is an OSError, not a SIGBUS."""

    def __init__(self, path: Path) -> None:
        _reserve(path, _FIRST_BYTES)
        super().__init__(str(path))

    def _init_value(self, key: str) -> None:
        if self._used + 2 * len(key.encode()) + 64 > self._capacity:
            _reserve(Path(self._fname), 2 * self._capacity)
        super()._init_value(key)


def _reserve(path: Path, size_bytes: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(handle, 0, size_bytes)
    finally:
        os.close(handle)


class _Files:
    """Files of this process, by kind; a forked child begins files of its own, at zero."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role, self.lock = folder, role, Lock()
        self.values: list[FileValue] = []
        self._open: dict[str, _ReservedFile] = {}
        self._member: Member | None = None
        self._refused = False
        os.register_at_fork(after_in_child=self._begin_anew)

    def find(self, kind: str) -> _ReservedFile | None:
        """Get the file of a kind of series, made on first use; None if the disk has no room for it now."""
        found = self._open.get(kind)
        try:
            if found is None:
                found = self._open[kind] = _ReservedFile(self.path(f"{kind}_", SUFFIX))
        except OSError as error:
            self.refuse(error)
        return found

    def path(self, before: str, after: str) -> Path:
        """Name a file of this process. Raises: OSError if the process cannot be made known in the folder."""
        if self._member is None:
            self._member = join(self.folder, self.role)
        return self.folder / f"{before}{self._member.name}{after}"

    def refuse(self, error: OSError) -> None:
        """Say once that series stay in memory."""
        if not self._refused:
            self._refused = True
            _logger.warning("series stay in memory, as %s takes no more: %s", self.folder, error)

    def _begin_anew(self) -> None:
        self.lock, self._open = Lock(), {}
        if self._member is not None:
            self._member.leave_to_parent()
            self._member = None
        for value in self.values:
            value.restart()


_files: _Files | None = None


class FileValue:
    """One number of a series, as `prometheus_client.values` wants it. Without room on the disk it counts in memory."""

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._kind = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        self._key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self._value, self._at = 0.0, 0.0
        self._file: _ReservedFile | None = None
        files = _files_of_process()
        with files.lock:
            files.values.append(self)
            self._attach(files)

    def inc(self, amount: float) -> None:
        """Add to this process's value."""
        files = _files_of_process()
        with files.lock:
            self._value += amount
            self._write(files)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the value of this process. timestamp: of the newest value of several processes."""
        files = _files_of_process()
        with files.lock:
            self._value, self._at = value, timestamp or 0.0
            self._write(files)

    def get(self) -> float:
        """Return the value of this process alone."""
        return self._value

    def set_exemplar(self, exemplar: Any) -> None:
        """Ignore an exemplar, for which the files have no room."""

    def get_exemplar(self) -> None:
        """Return None, as exemplars are not kept."""

    def restart(self) -> None:
        """Begin at zero in the file of a process that was just forked."""
        self._value, self._at, self._file = 0.0, 0.0, None

    def _attach(self, files: _Files) -> None:
        file = files.find(self._kind)
        if file is not None:
            try:
                counted = file.read_value(self._key)
            except OSError as error:
                files.refuse(error)
                return
            if self._value == 0.0:  # another object may have counted the same series
                self._value, self._at = counted
            self._file = file

    def _write(self, files: _Files) -> None:
        if self._file is None:
            self._attach(files)
        if self._file is not None:
            self._file.write_value(self._key, self._value, self._at)


def write_to_files(folder: Path, role: str) -> None:
    """Keep every series of this process, declared before or after, in files of `folder`; a second call does nothing.

    role: which kind of process it is, like "gateway". Counts from before the call are carried over.
    """
    global _files  # noqa: PLW0603  # prometheus_client has one class of values a process
    if _files is not None:
        return
    _files = _Files(folder, role)
    values.ValueClass = FileValue
    for metric in list(REGISTRY._collector_to_names):  # noqa: SLF001  # it has no public list
        if isinstance(metric, MetricWrapperBase) and metric._name.startswith(PREFIX):  # noqa: SLF001
            _move(metric)


def _files_of_process() -> _Files:
    assert _files is not None  # noqa: S101  # FileValue is installed together with them
    return _files


def folder_of_process() -> Path | None:
    """Find the folder that this process writes its series to; None if it keeps them in memory."""
    return None if _files is None else _files.folder


def path_of_process(before: str, after: str) -> Path | None:
    """Name a file of this process in that folder; None if it keeps its series in memory. Raises: OSError."""
    return None if _files is None else _files.path(before, after)


def _move(metric: Any) -> None:
    """Move a metric with its children from memory to files, in place, as others hold them."""
    for each in list(metric._metrics.values()) if metric._is_parent() else [metric]:  # noqa: SLF001
        counted = _numbers(each)
        each._metric_init()  # noqa: SLF001
        for new, old in zip(_numbers(each), counted, strict=True):
            if isinstance(each, Gauge):
                new.set(old.get(), time.time())
            else:
                new.inc(old.get())


def _numbers(metric: Any) -> list[Any]:
    """List the values that a metric without labels, or a child, is made of."""
    if isinstance(metric, Histogram):
        return [metric._sum, *metric._buckets]  # noqa: SLF001
    if isinstance(metric, Summary):
        return [metric._count, metric._sum]  # noqa: SLF001
    if isinstance(metric, Counter | Gauge):
        return [metric._value]  # noqa: SLF001
    raise TypeError(f"{metric}: only counters, gauges, histograms and summaries are kept in files")


@dataclass(frozen=True, slots=True)
class Member:
    """Process that keeps series in a folder. name: its own among all that ever were; role: like "gateway"."""

    name: str
    role: str
    pid: int
    handle: int = -1

    def leave_to_parent(self) -> None:
        """Close, in a forked child, what the parent holds."""
        os.close(self.handle)


@contextmanager
def folder_held(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Hold a folder as one reader of several, waiting for it; or alone, without waiting: whether it is held.

    Who holds it alone may remove files of dead processes.
    """
    with file_lock(folder / _FOLDER_LOCK, shared=not alone, wait=not alone) as held:
        yield held


def join(folder: Path, role: str) -> Member:
    """Make this process known in a folder, until it ends."""
    name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    with folder_held(folder, alone=False):  # nobody takes the file for a dead process's before it is locked
        handle = os.open(folder / f"{name}{_LOCK_SUFFIX}", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(handle, json.dumps({"role": role, "pid": os.getpid()}).encode())
        lock(handle)
    return Member(name, role, os.getpid(), handle)


def living(folder: Path) -> list[Member]:
    """List the processes that live; the folder must be held."""
    found = []
    for path in folder.glob(f"*{_LOCK_SUFFIX}"):
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            try:
                if not lock(handle, shared=True, wait=False):
                    content = json.loads(path.read_text() or "{}")
                    name = path.name.removesuffix(_LOCK_SUFFIX)
                    found.append(Member(name, content.get("role", ""), content.get("pid", 0)))
            finally:
                os.close(handle)
    return found


def forget(folder: Path, alive: set[str]) -> None:
    """Remove the locks, and what was published, of all others than `alive`; the folder must be held alone."""
    for path in (*folder.glob(f"*{_LOCK_SUFFIX}"), *folder.glob(f"*{PUBLISHED}")):
        if path.stem.rpartition("_")[2] not in alive:
            path.unlink(missing_ok=True)
