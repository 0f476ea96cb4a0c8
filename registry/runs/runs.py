"""Experiments and their runs: start, find, search and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from toque.registry.names import check_name
from toque.registry.runs.compare import comparison, plot
from toque.registry.runs.environment import environment
from toque.registry.runs.record import RunRecord, new_run_id, with_segments
from toque.registry.runs.run import Run
from toque.registry.runs.run_store import RunStore
from toque.registry.runs.search import Comparable, parse_order, parse_where
from toque.registry.store import TableSnapshot

if TYPE_CHECKING:
    import pyarrow as pa


class Runs(RunStore):
    """The part of the registry that starts, finds, searches and compares runs of experiments."""

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
        """Begin a run, as a context manager that ends it; 3 writes and 1 read.

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

    def get_run(self, run_id: str) -> Run:
        """Get a handle to a run, to read it or to log to it from anywhere. Raises: NotFound."""
        record = self._started(run_id)
        segments = list(self.segments(run_id))
        return Run(self, with_segments(record, segments), segments=len(segments))

    def list_experiments(self) -> list[str]:
        """List names of all experiments that have runs, sorted."""
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
        columns: Callable[[str], Comparable] | None = None,
    ) -> list[RunRecord]:
        """Find runs for which `where` holds (MLflow's filter grammar; see `toque.registry.runs.search`).

        columns: resolves the names in `where`; None: those that a run has.

        The index is one read when warm; the store is not listed. Running runs are read one by one.
        The records lack `facts["environment"]`, which only `get_run` reads.
        Raises: InvalidInput if the filter cannot be read, with the position of the error.
        """
        holds, sort = parse_where(where, columns), parse_order(order_by)
        names = [experiment] if isinstance(experiment, str) else list(experiment)
        records = [record for name in names for record in self.index(name).refresh().values()]
        running = [record for record in records if record.status == "RUNNING"]
        with ThreadPoolExecutor(8) as pool:
            live = {record.id: record for record in pool.map(self._live, running)}
        found = [run for record in records if holds(run := live.get(record.id, record))]
        return sort(found)[:limit]

    def compare_runs(self, run_ids: Sequence[str]) -> pa.Table:
        """Compare runs in a table: run, name, status, then the parameters and metrics in which they differ.

        Raises: NotFound.
        """
        return comparison([self.get_record(run_id) for run_id in run_ids])

    def plot_runs(self, run_ids: Sequence[str], metric: str) -> str:
        """Plot a metric of several runs as an HTML page, one line a run. Raises: NotFound."""
        records = [self.get_record(run_id) for run_id in run_ids]
        series = {f"{run.name} {run.id[:12]}".strip(): self.get_run(run.id).series(metric) for run in records}
        return plot(metric, series)

    def reap_runs(self, experiment: str) -> list[str]:
        """Mark runs without a heartbeat as LOST in the index; returns their ids."""
        ids = []
        for record in self.search_runs(experiment, "attributes.status = 'LOST'"):
            if self.index(experiment).state[record.id].status == "RUNNING":
                self.end(record, "LOST")
                ids.append(record.id)
        return ids
