"""Experiments and runs: start, find and search them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from registry import run as runs_io
from registry import run_record
from registry.environment import environment
from registry.errors import NotFound
from registry.fold import Fold
from registry.journal import Journal
from registry.names import check_name
from registry.run import Run, new_run_id
from registry.run_compare import comparison, plot
from registry.run_record import Index, RunRecord, Segment, Status, with_segments
from registry.run_search import parse_order, parse_where
from registry.shelf import Shelf
from registry.tables import TableSnapshot
from registry.times import Clock, from_text, utc_now

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
        check_name(experiment, what="experiment")
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
        self.store.create(f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        self.beat(record.id)
        self._index(experiment).transact(lambda _: {"kind": "started", "run": _brief(record)})
        return Run(self, record, owner=True)

    def get_run(self, run_id: str) -> Run:
        """A handle to a run, to read it or to log to it from anywhere. Raises: NotFound."""
        record = self._started(run_id)
        segments = list(self.segments(run_id))
        return Run(self, with_segments(record, segments), segments=len(segments))

    def get_record(self, run_id: str) -> RunRecord:
        """All that is known of a run now. Raises: NotFound."""
        started = self._started(run_id)
        told = self._index(started.experiment).refresh().get(run_id, started)
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
        """Runs for which `where` holds (MLflow's filter grammar; see `registry.run_search`).

        The store is not listed: the index is one read when warm. Runs still going on are read one by one.
        The records lack `facts["environment"]`, which only `get_run` reads.
        Raises: InvalidInput if the filter cannot be read, with the place.
        """
        holds, sort = parse_where(where), parse_order(order_by)
        names = [experiment] if isinstance(experiment, str) else list(experiment)
        records = [record for name in names for record in self._index(name).refresh().values()]
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
            if self._index(experiment).state[record.id].status == "RUNNING":
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
            return {"kind": "ended", "run": _brief(ended)}

        self._index(record.experiment).transact(decide)
        return ended

    def segments(self, run_id: str) -> Iterator[Segment]:
        """What a run has stored so far, in order."""
        number = 0
        while (data := self.store.find(runs_io.segment_key(run_id, number))) is not None:
            yield Segment.from_bytes(data, runs_io.segment_key(run_id, number))
            number += 1

    def store_segment(self, run_id: str, number: int, data: bytes) -> int:
        """Store a segment's bytes at the first free number from `number`; returns the one after. Used by `Run`."""
        return runs_io.store_segment(self.store, run_id, number, data)

    def beat(self, run_id: str) -> None:
        """Say that the run's owner is alive. Used by `Run`."""
        self.store.put(f"runs/{run_id}/heartbeat", runs_io.beat_text())

    def _live(self, record: RunRecord) -> RunRecord:
        """A run the index tells as going on, as its segments tell it; LOST if its heart has stopped."""
        whole = with_segments(record, self.segments(record.id))
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

    def _index(self, experiment: str) -> Fold[Index]:
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


def _brief(record: RunRecord) -> dict[str, Any]:
    """What the index keeps of a run: all but its environment, which is most of its bytes and rarely asked for."""
    facts = {fact: value for fact, value in record.facts.items() if fact != "environment"}
    return replace(record, facts=facts).to_json()
