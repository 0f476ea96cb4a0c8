"""Experiments and runs: start, find and search them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from registry.errors import AlreadyExists, NotFound, Unavailable
from registry.journal.fold import Fold
from registry.journal.journal import Journal
from registry.models.model_journals import Shelf
from registry.models.versions import Blob
from registry.names import check_key, check_name
from registry.runs import record as run_record
from registry.runs.compare import comparison, plot
from registry.runs.environment import environment
from registry.runs.record import Index, RunRecord, Segment, Status, new_run_id, with_segments
from registry.runs.run import Run
from registry.runs.search import parse_order, parse_where
from registry.store.blobs import fetch, sha256_of
from registry.store.tables import TableSnapshot
from registry.times import Clock, from_text, to_text, utc_now

_BATCH = 16  # segments read at once
LOST_AFTER = timedelta(seconds=60)  # without a heartbeat, which comes every ten


class Runs(Shelf):
    """The part of the registry about experiments.

    An experiment is a journal that tells each run when it starts and when it ends, which makes it the index
    that search reads; what a run logs in between stands in segments of its own.
    """

    def __init__(self, store: Any, *, actor: str, clock: Clock = utc_now) -> None:
        super().__init__(store, actor=actor, clock=clock)
        self._experiments: dict[str, Fold[Index]] = {}
        self._experiments_lock = threading.Lock()

    def start_run(
        self,
        experiment: str,
        *,
        name: str = "",
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        datasets: Sequence[TableSnapshot] = (),
        code: str | None = None,
        parent: str | None = None,
    ) -> Run:
        """Begin a run; a context manager that ends it. 3 writes and 1 read.

        code: digest of the code that runs; parent: id of the run this one is part of.
        Raises: InvalidInput for a malformed experiment name.
        """
        facts = {"environment": environment(), "code": code, "parent": parent}
        record = RunRecord(
            id=new_run_id(),
            experiment=experiment,
            name=name,
            status="RUNNING",
            actor=self.actor,
            started_at=self.clock(),
            params={str(param): str(value) for param, value in (params or {}).items()},
            tags=dict(tags or {}),
            datasets=tuple(datasets),
            facts={fact: value for fact, value in facts.items() if value is not None},
        )
        check_name(experiment, what="experiment")
        self.beat(record.id)
        self.begin(record)
        return Run(self, record, owner=True)

    def begin(self, record: RunRecord) -> None:
        """Tell the index of a run that begins; 2 writes. Used by `start_run` and `RunLog`."""
        index = self.index(record.experiment)
        self.store.create(f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        index.transact(lambda _: {"kind": "started", "run": record.brief()})

    def get_run(self, run_id: str) -> Run:
        """A handle to a run, to read it or to log to it from anywhere. Raises: NotFound."""
        record = self._started(run_id)
        segments = list(self.segments(run_id))
        return Run(self, with_segments(record, segments), segments=len(segments))

    def get_record(self, run_id: str) -> RunRecord:
        """All that is known of a run now. Raises: NotFound."""
        started = self._started(run_id)
        told = self.index(started.experiment).refresh().get(run_id, started)
        whole = told if told.status != "RUNNING" else self._live(told)
        return replace(whole, facts={**started.facts, **whole.facts})

    def list_experiments(self) -> list[str]:
        """Names of all experiments, sorted."""
        names, after = [], ""
        while (key := next(self.store.list("experiments/", after=after), None)) is not None:
            names.append(key.split("/")[1])
            after = f"experiments/{names[-1]}/\U0010ffff"
        return sorted(names)

    def search_runs(
        self,
        experiment: str | Sequence[str],
        where: str = "",
        *,
        order_by: str | Sequence[str] = "attributes.start_time DESC",
        limit: int = 1000,
    ) -> list[RunRecord]:
        """Runs for which `where` holds (MLflow's filter grammar; see `registry.runs.search`).

        The store is not listed: the index is one read when warm. Runs still going on are read one by one.
        The records lack `facts["environment"]`, which only `get_run` reads.
        Raises: InvalidInput if the filter cannot be read, with the place.
        """
        holds, sort = parse_where(where), parse_order(order_by)
        names = [experiment] if isinstance(experiment, str) else list(experiment)
        records = [record for name in names for record in self.index(name).refresh().values()]
        going = [record for record in records if record.status == "RUNNING"]
        with ThreadPoolExecutor(8) as pool:
            live = {record.id: record for record in pool.map(self._live, going)}
        found = [run for record in records if holds(run := live.get(record.id, record))]
        return sort(found)[:limit]

    def compare_runs(self, run_ids: Sequence[str]) -> pa.Table:
        """One row a run: run, name, status, then the parameters and metrics in which they differ.

        Raises: NotFound.
        """
        return comparison([self.get_record(run_id) for run_id in run_ids])

    def plot_runs(self, run_ids: Sequence[str], metric: str) -> str:
        """An HTML page with the series of a metric, one line a run. Raises: NotFound."""
        records = [self.get_record(run_id) for run_id in run_ids]
        series = {f"{one.name} {one.id[:12]}".strip(): self.get_run(one.id).series(metric) for one in records}
        return plot(metric, series)

    def reap_runs(self, experiment: str) -> list[str]:
        """Record in the index that runs without a heartbeat are LOST; returns their ids."""
        ids = []
        for record in self.search_runs(experiment, "attributes.status = 'LOST'"):
            if self.index(experiment).state[record.id].status == "RUNNING":
                self.end(record, "LOST")
                ids.append(record.id)
        return ids

    def end(self, record: RunRecord, status: Status) -> RunRecord:
        """Tell the index that a run has ended, with all its segments say. Used by `Run.finish`."""
        whole = with_segments(record, self.segments(record.id))
        ended = replace(whole, status=status, ended_at=self.clock())

        def decide(index: Index) -> dict[str, Any] | None:
            told = index.get(record.id)
            if told is not None and told.status == status:
                return None
            return {"kind": "ended", "run": ended.brief()}

        self.index(record.experiment).transact(decide)
        return ended

    def segments(self, run_id: str, start: int = 0) -> Iterator[Segment]:
        """What a run has stored so far, in order, from number `start`.

        Read until one is missing: one by one, then in ever larger batches at once.
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
        """Store the bytes of a file that will be artifact `path` of a run; a segment then tells of it.

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
        """Say that the run's owner is alive, by the wall clock, whatever clock the registry runs on. Used by `Run`."""
        self.store.put(f"runs/{run_id}/heartbeat", to_text(utc_now()).encode())

    def _live(self, record: RunRecord) -> RunRecord:
        """A run the index tells as going on, as its segments tell it; LOST if its heart has stopped.

        A run logged from afar (see `RunLog`) has no heart, and goes on until it is told to have ended.
        """
        whole = with_segments(record, self.segments(record.id))
        if record.facts.get("remote"):
            return whole
        beat = self.store.find(f"runs/{record.id}/heartbeat")
        last: datetime | None = None if beat is None else from_text(beat.decode())
        lost = last is None or utc_now() - last > LOST_AFTER
        return replace(whole, status="LOST") if lost else whole

    def _started(self, run_id: str) -> RunRecord:
        check_name(run_id, what="run id")
        data = self.store.find(f"runs/{run_id}/run.json")
        if data is None:
            raise NotFound(f"run {run_id!r} does not exist in {self.store.url}")
        return RunRecord.from_json(json.loads(data))

    def index(self, experiment: str) -> Fold[Index]:
        """The runs of an experiment, kept warm: `.refresh()` is one read. Raises: InvalidInput."""
        check_name(experiment, what="experiment")
        with self._experiments_lock:
            if experiment not in self._experiments:
                self._experiments[experiment] = Fold(
                    Journal(
                        self.store, f"experiments/{experiment}/journal", actor=self.actor, clock=self.clock
                    ),
                    {},
                    run_record.step,
                    encode=run_record.encode,
                    decode=run_record.decode,
                    schema=run_record.SCHEMA,
                    carry=True,
                )
            return self._experiments[experiment]


def _segment_key(run_id: str, number: int) -> str:
    return f"runs/{run_id}/segments/{number:06d}.json"


def _artifact_key(run_id: str, path: str, blob: Blob) -> str:
    return f"runs/{run_id}/artifacts/{blob.sha256[:16]}/{PurePosixPath(path).name}"
