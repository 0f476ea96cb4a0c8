"""Storage of runs: an index journal for each experiment, and segments and artifacts for each run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from toque.registry.errors import AlreadyExists, NotFound, Unavailable
from toque.registry.journal import Fold, Journal
from toque.registry.models.model_journals import ModelJournals, going_on
from toque.registry.names import check_key, check_name
from toque.registry.runs import record as run_record
from toque.registry.runs.record import Index, RunRecord, Segment, Status, with_segments
from toque.registry.store import Blob
from toque.registry.store.blobs import fetch, sha256_of
from toque.registry.times import Clock, from_text, to_text, utc_now

_BATCH = 16  # segments read at once
LOST_AFTER = timedelta(seconds=60)  # without a heartbeat, which comes every ten


class RunStore(ModelJournals):
    """Reads and writes the records of runs, for `Runs`, `Run` and `RunLog`.

    An experiment is a journal with an entry where a run starts and one where it ends; it is the index that search
    reads. What a run logs in between is stored in segments of its own.
    """

    def __init__(self, store: Any, *, actor: str, clock: Clock = utc_now) -> None:
        super().__init__(store, actor=actor, clock=clock)
        self._experiments: dict[str, Fold[Index]] = {}
        self._experiments_lock = threading.Lock()

    def index(self, experiment: str) -> Fold[Index]:
        """Follow the index of an experiment's runs: `.refresh()` is one read. Raises: InvalidInput."""
        check_name(experiment, what="experiment")
        found = self._experiments.get(experiment)
        if found is not None:
            return found
        shared = self._origin if isinstance(self._origin, RunStore) else None
        made = (
            self._open_index(experiment) if shared is None else going_on(shared.index(experiment), self.actor)
        )
        with self._experiments_lock:
            return self._experiments.setdefault(experiment, made)

    def _open_index(self, experiment: str) -> Fold[Index]:
        return Fold(
            Journal(self.store, f"experiments/{experiment}/journal", actor=self.actor, clock=self.clock),
            {},
            run_record.step,
            encode=run_record.encode,
            decode=run_record.decode,
            schema=run_record.SCHEMA,
            carry=True,
        )

    def begin(self, record: RunRecord) -> None:
        """Record in the index that a run begins; 2 writes. Used by `start_run` and `RunLog`."""
        index = self.index(record.experiment)
        self.store.create(f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        index.transact(lambda _: {"kind": "started", "run": record.brief()})

    def end(self, record: RunRecord, status: Status) -> RunRecord:
        """Record in the index that a run has ended, with everything in its segments. Used by `Run.finish`."""
        whole = with_segments(record, self.segments(record.id))
        ended = replace(whole, status=status, ended_at=self.clock())

        def decide(index: Index) -> dict[str, Any] | None:
            indexed = index.get(record.id)
            if indexed is not None and indexed.status == status:
                return None
            return {"kind": "ended", "run": ended.brief()}

        self.index(record.experiment).transact(decide)
        return ended

    def get_record(self, run_id: str) -> RunRecord:
        """Read everything known of a run now. Raises: NotFound."""
        started = self._started(run_id)
        indexed = self.index(started.experiment).refresh().get(run_id, started)
        whole = indexed if indexed.status != "RUNNING" else self._live(indexed)
        return replace(whole, facts={**started.facts, **whole.facts})

    def segments(self, run_id: str, start: int = 0) -> Iterator[Segment]:
        """Read a run's segments in order from number `start`.

        Reads until one is missing: one by one first, then in ever larger parallel batches.
        """
        number, batch = start, 1
        with ThreadPoolExecutor(_BATCH) as pool:
            while True:
                keys = [_segment_key(run_id, each) for each in range(number, number + batch)]
                for key, data in zip(keys, pool.map(self.store.find, keys), strict=True):
                    if data is None:
                        return
                    yield Segment.from_bytes(data, key)
                number += batch
                batch = min(_BATCH, number - start)

    def store_segment(self, run_id: str, number: int, data: bytes) -> int:
        """Store a segment's bytes at the first free number from `number` on; returns the number after it.

        The bytes are unique, so a retry that meets its own success recognises it. Used by `Run` and `RunLog`.
        Raises: Unavailable; the same call may be made again.
        """
        while True:
            key = _segment_key(run_id, number)
            try:
                self.store.create(key, data)
            except AlreadyExists:
                if self.store.find(key) != data:
                    number += 1
                    continue
            except Unavailable:
                if self.store.find(key) != data:
                    raise
            return number + 1

    def store_artifact(self, run_id: str, path: str, file: Path) -> Blob:
        """Store the bytes of a file as artifact `path` of a run; the caller records it in a segment.

        Raises: InvalidInput if `path` is not a path below the run.
        """
        blob = Blob(sha256=sha256_of(file), size=file.stat().st_size)
        check_key(path)
        self.store.upload(_artifact_key(run_id, path, blob), file)
        return blob

    def fetch_artifact(self, record: RunRecord, path: str, target: Path) -> Path:
        """Write artifact `path` of a run to the file `target`, its digest checked; returns the file.

        Raises: NotFound; Damaged.
        """
        blob = record.artifacts.get(path)
        if blob is None:
            raise NotFound(f"run {record.id} has no artifact {path!r}")
        fetch(self.store, _artifact_key(record.id, path, blob), blob, target)
        return target

    def beat(self, run_id: str) -> None:
        """Write the heartbeat of the run's owner, by the wall clock even if the registry has another. Used by `Run`."""
        self.store.put(f"runs/{run_id}/heartbeat", to_text(utc_now()).encode())

    def _started(self, run_id: str) -> RunRecord:
        check_name(run_id, what="run id")
        data = self.store.find(f"runs/{run_id}/run.json")
        if data is None:
            raise NotFound(f"run {run_id!r} does not exist")
        return RunRecord.from_json(json.loads(data))

    def _live(self, record: RunRecord) -> RunRecord:
        """Read a running run from its segments; LOST if its heartbeat has stopped.

        A remote run (see `RunLog`) has no heartbeat and is running until its program ends it.
        """
        whole = with_segments(record, self.segments(record.id))
        if record.facts.get("remote"):
            return whole
        beat = self.store.find(f"runs/{record.id}/heartbeat")
        last: datetime | None = None if beat is None else from_text(beat.decode())
        lost = last is None or utc_now() - last > LOST_AFTER
        return replace(whole, status="LOST") if lost else whole


def _segment_key(run_id: str, number: int) -> str:
    return f"runs/{run_id}/segments/{number:06d}.json"


def _artifact_key(run_id: str, path: str, blob: Blob) -> str:
    return f"runs/{run_id}/artifacts/{blob.sha256[:16]}/{PurePosixPath(path).name}"
