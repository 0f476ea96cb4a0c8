"""Materialization of offline rows: a time window, or everything new since the last run, late rows included.

Progress is a claim `(version, end)` in Redis beside the rows: every row of that table version with event
time up to `end` has been written. The next incremental run writes the files that are new since that version, and of the
old files the rows whose event time has passed since. Claims are written after their rows and are lost with them, so
a kill at any point, or an emptied Redis, costs repetition and never a row. Finished files are recorded too: a rerun after
a kill first completes the interrupted run and skips them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidRows, UnknownDefinition
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import File, Version
from toque.featurestore.online.redis_store import OnlineStore
from toque.registry.times import MICROSECOND, epoch_us, from_epoch_us

ROWS_AT_ONCE = 200_000
SPREAD_ROWS = 1_000_000  # from which a run is worth starting tasks on other nodes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class FileShare:
    """Files of a view's table version to write online, by path: their rows with `start <= event time <= end`."""

    offline: OfflineStore
    online: OnlineStore
    view: FeatureView
    version: int
    paths: tuple[str, ...]
    start: datetime | None
    end: datetime
    rows_at_once: int = ROWS_AT_ONCE

    def written(self) -> Iterator["FilesWritten"]:
        """Write the rows batch by batch, and say after each what was written. Raises: OnlineStoreUnavailable."""
        version = self.offline.version(self.view, self.version)
        if version is None:
            raise UnknownDefinition(
                f"feature view {self.view.name!r}: version {self.version} of its table cannot be read"
            )
        wanted = set(self.paths)
        batches = self.offline.batches(
            self.view,
            version,
            [file for file in version.files if file.path in wanted],
            start=self.start,
            end=self.end,
            rows=self.rows_at_once,
        )
        for batch, ended in batches:
            written = self.online.write(self.view, batch)
            yield FilesWritten(batch.num_rows, written, tuple(file.path for file in ended))


@dataclass(frozen=True, slots=True)
class FilesWritten:
    """Rows of a batch that were sent, those that were new or newer online, and the files that ended with it."""

    rows: int
    written: int
    ended: tuple[str, ...]


Spread = Callable[[FileShare, Sequence[File]], Iterable[FilesWritten]]
"""Writes a share of files in tasks on several nodes."""


class Materialized(BaseModel):
    """Result of one materialization run for one view.

    rows: sent to the online store; written: that were new or newer there; table_version: read (None: no table yet);
    end: rows up to this event time; resumed: whether an interrupted run was completed first.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    rows: int = 0
    written: int = 0
    table_version: int | None = None
    end: datetime
    resumed: bool = False
    seconds: float = 0.0

    @property
    def rows_per_s(self) -> float:
        """Throughput of the run in rows per second."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim that every row of the table's version with event time up to `end_us` has been written."""

    version: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Run:
    """Materialization from one claim to the next; `start_us` bounds a window, which makes no claim."""

    before: Claim | None
    after: Claim
    start_us: int | None = None

    def to_json(self) -> str:
        """Encode the run as stored while it is in progress."""
        before = None if self.before is None else [self.before.version, self.before.end_us]
        return json.dumps([before, [self.after.version, self.after.end_us], self.start_us])

    @classmethod
    def from_json(cls, text: str | bytes) -> "Run":
        """Read a run from the text of `to_json`."""
        before, after, start_us = json.loads(text)
        return cls(None if before is None else Claim(*before), Claim(*after), start_us)


class Materializer:
    """Moves rows of views from the offline to the online store.

    progress: called with the view's name, rows done and rows in total, after each batch.
    rows_at_once: bounds the rows in memory. spread: writes the files of large runs on several nodes.
    """

    def __init__(
        self,
        offline: OfflineStore,
        online: OnlineStore,
        *,
        progress: Progress | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
        spread: Spread | None = None,
    ) -> None:
        self._offline = offline
        self._online = online
        self._progress = progress
        self._rows_at_once = rows_at_once
        self._spread = spread

    def window(self, view: FeatureView, *, start: datetime | None, end: datetime) -> Materialized:
        """Write online the rows with `start <= event time <= end`; all up to `end` if start is None.

        Raises: InvalidRows if `start` is after `end`; OnlineStoreUnavailable; a rerun completes it.
        """
        began = time.perf_counter()
        if start is not None and start > end:
            msg = f"feature view {view.name!r}: start {start.isoformat()} is after end {end.isoformat()}; swap them"
            raise InvalidRows(msg)
        version = self._offline.version(view)
        if version is None:
            return Materialized(view=view.name, end=end)
        start_us = None if start is None else epoch_us(start)
        run = Run(None, Claim(version.number, epoch_us(end)), start_us)
        return self._run(view, run, began=began, resumed=self._interrupted(view) == run)

    def incremental(self, view: FeatureView, *, end: datetime) -> Materialized:
        """Write online what is new up to `end`: new files, and rows whose event time has passed.

        Raises: OnlineStoreUnavailable; a rerun completes it.
        """
        began = time.perf_counter()
        interrupted = self._interrupted(view)
        before = None if interrupted is None else self._resumed(view, interrupted, began=began)
        version = self._offline.version(view)
        if version is None:
            return Materialized(view=view.name, end=end)
        run = Run(self.claimed(view), Claim(version.number, epoch_us(end)))
        done = self._run(view, run, began=began, resumed=before is not None)
        if before is None:
            return done
        return done.model_copy(
            update={"rows": done.rows + before.rows, "written": done.written + before.written}
        )

    def _resumed(self, view: FeatureView, run: Run, *, began: float) -> Materialized | None:
        """Complete an interrupted run; None if its files are erased, in which case the next run covers it."""
        try:
            return self._run(view, run, began=began, resumed=True)
        except FileNotFoundError:
            with self._online.reachable():
                self._online.client.delete(self._key(view, "run"), self._done_key(view, run))
            return None

    def claimed(self, view: FeatureView) -> Claim | None:
        """Read the online store's claim about the view."""
        with self._online.reachable():
            found = self._online.client.get(self._key(view, "claim"))
        return Claim(*json.loads(found)) if isinstance(found, bytes) else None

    def _key(self, view: FeatureView, what: str) -> str:
        # The text in braces decides the slot in a cluster: a view's keys are changed in one transaction.
        return f"toque-{what}:{{{self._online.project}:{view.stored_as}}}"

    def _done_key(self, view: FeatureView, run: Run) -> str:
        return self._key(view, "done") + ":" + hashlib.sha256(run.to_json().encode()).hexdigest()[:16]

    def _interrupted(self, view: FeatureView) -> Run | None:
        with self._online.reachable():
            found = self._online.client.get(self._key(view, "run"))
        return Run.from_json(found) if isinstance(found, bytes) else None

    def _run(self, view: FeatureView, run: Run, *, began: float, resumed: bool) -> Materialized:
        version = self._offline.version(view, run.after.version)
        if version is None or run.before == run.after:
            end = from_epoch_us(run.after.end_us)
            return Materialized(view=view.name, table_version=run.after.version, end=end, resumed=resumed)
        done_key = self._done_key(view, run)
        with self._online.reachable():
            self._online.client.set(self._key(view, "run"), run.to_json())
            members = self._online.client.smembers(done_key)
        done = (
            {path.decode() for path in members if isinstance(path, bytes)}
            if isinstance(members, set)
            else set()
        )
        rows, written = self._write(view, version, run, done, done_key)
        self._finish(view, run, done_key)
        return Materialized(
            view=view.name,
            rows=rows,
            written=written,
            table_version=version.number,
            end=from_epoch_us(run.after.end_us),
            resumed=resumed,
            seconds=time.perf_counter() - began,
        )

    def _write(
        self, view: FeatureView, version: Version, run: Run, done: set[str], done_key: str
    ) -> tuple[int, int]:
        rows = written = 0
        shares = self._files_to_read(view, version, run)
        total = sum(f.rows for files, _ in shares for f in files)
        for files, start_us in shares:
            remaining = [f for f in files if f.path not in done]
            share = FileShare(
                self._offline,
                self._online,
                view,
                version.number,
                tuple(f.path for f in remaining),
                None if start_us is None else from_epoch_us(start_us),
                from_epoch_us(run.after.end_us),
                self._rows_at_once,
            )
            large = self._spread is not None and sum(f.rows for f in remaining) >= SPREAD_ROWS
            for more in self._spread(share, remaining) if large and self._spread else share.written():
                rows, written = rows + more.rows, written + more.written
                self._record_done(done_key, more.ended)
                if self._progress is not None:
                    self._progress(view.name, rows, total)
        return rows, written

    def _files_to_read(
        self, view: FeatureView, version: Version, run: Run
    ) -> list[tuple[list[File], int | None]]:
        """Files to read, with the first event time of the rows to write from them."""
        end = from_epoch_us(run.after.end_us)
        if run.before is None:
            start = None if run.start_us is None else from_epoch_us(run.start_us)
            return [([f for f in version.files if f.may_hold(start, end)], run.start_us)]
        known = self._offline.known_since(view, run.before.version, version.number)
        new = [f for f in version.files if f.path not in known and f.may_hold(None, end)]
        since = from_epoch_us(run.before.end_us) + MICROSECOND
        due = [f for f in version.files if f.path in known and f.may_hold(since, end)]
        return (
            [(new, None), (due, run.before.end_us + 1)]
            if run.before.end_us < run.after.end_us
            else [(new, None)]
        )

    def _record_done(self, done_key: str, paths: Sequence[str]) -> None:
        if paths:
            with self._online.reachable():
                self._online.client.sadd(done_key, *paths)

    def _finish(self, view: FeatureView, run: Run, done_key: str) -> None:
        """Write the claim and delete the run's progress in one transaction."""
        with self._online.reachable():
            pipe = self._online.client.pipeline(transaction=True)
            if run.start_us is None:
                pipe.set(self._key(view, "claim"), json.dumps([run.after.version, run.after.end_us]))
            pipe.delete(self._key(view, "run"), done_key)
            pipe.execute()
