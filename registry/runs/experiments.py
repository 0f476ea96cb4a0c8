"""Experiments and their runs: start, find, search and compare them, and keep notes about experiments.

An experiment exists as soon as it has a run, with or without a note of its title, tags, and whether it is deleted. One
journal keeps the notes of all experiments. A comparison is a table of what differs, or a plot of a metric's series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from toque.registry.errors import AlreadyExists, NotFound
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.models.versions import merged_tags
from toque.registry.names import check_name
from toque.registry.runs.record import Point, RunRecord, RunStore, new_run_id, with_segments
from toque.registry.runs.run import Run, environment
from toque.registry.runs.search import Comparable, parse_order, parse_where
from toque.registry.store import TableSnapshot
from toque.registry.times import Clock, from_text, to_text, utc_now

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


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment with its name, free title, tags and times.

    title: unique among experiments that are not deleted; deleted: hidden, its runs stay.
    """

    name: str
    title: str
    created_at: datetime
    changed_at: datetime
    tags: Mapping[str, str] = field(default_factory=dict)
    deleted: bool = False


Notes = Mapping[str, Experiment]


class Experiments(Runs):
    """The part of the registry that creates, finds, changes and lists experiments."""

    def __init__(self, store: Any, *, actor: str, clock: Clock = utc_now) -> None:
        super().__init__(store, actor=actor, clock=clock)
        journal = Journal(store, "experiment-notes/journal", actor=actor, clock=clock)
        self._notes: Fold[Notes] = Fold(journal, {}, _step, encode=_encode, decode=_decode, carry=True)

    def follow_notes(self) -> Fold[Notes]:
        """Follow titles, tags and deletions of experiments by name: `.refresh()` is one read."""
        return self._notes

    def create_experiment(
        self, name: str, *, title: str = "", tags: Mapping[str, str] | None = None
    ) -> Experiment:
        """Create an experiment before it has a run; 1 write.

        title: free text; "": the name.
        Raises: AlreadyExists if the name or the title is taken; InvalidInput for a malformed name.
        """
        check_name(name, what="experiment")
        wanted = title or name

        def decide(notes: Notes) -> dict[str, Any]:
            taken = notes.get(name) or _titled(notes, wanted)
            if taken is not None:
                raise AlreadyExists(
                    f"experiment {taken.title!r} exists already, under the name {taken.name!r}"
                )
            return {"kind": "created", "name": name, "title": wanted, "tags": dict(tags or {})}

        self._notes.transact(decide)
        return self._notes.state[name]

    def get_experiment(self, name: str) -> Experiment:
        """Get an experiment that was created or has a run; 1 read when warm. Raises: NotFound; InvalidInput."""
        check_name(name, what="experiment")
        found = self._notes.refresh().get(name) or self._unnoted(name)
        if found is None:
            raise NotFound(f"experiment {name!r} does not exist; create it, or start a run in it")
        return found

    def find_experiment(self, title: str) -> Experiment | None:
        """Find the experiment of that title, or None; deleted experiments come last."""
        noted = sorted(self._notes.refresh().values(), key=lambda note: note.deleted)
        return next((each for each in noted if each.title == title), None) or next(
            (experiment for experiment in self.all_experiments() if experiment.title == title), None
        )

    def all_experiments(self) -> list[Experiment]:
        """List every experiment, deleted ones included, oldest first; lists the store."""
        notes = self._notes.refresh()
        unnoted = (self._unnoted(name) for name in self.list_experiments() if name not in notes)
        found = [*notes.values(), *(each for each in unnoted if each is not None)]
        return sorted(found, key=lambda each: (each.created_at, each.name))

    def change_experiment(
        self,
        name: str,
        *,
        title: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        deleted: bool | None = None,
    ) -> Experiment:
        """Change the title, add or remove (None) tags, delete or restore the experiment; 1 write.

        Raises: NotFound; AlreadyExists if another experiment has that title.
        """
        before = self.get_experiment(name)

        def decide(notes: Notes) -> dict[str, Any] | None:
            note = notes.get(name, before)
            wanted = replace(
                note,
                title=note.title if title is None else title,
                tags=merged_tags(note.tags, tags or {}),
                deleted=note.deleted if deleted is None else deleted,
            )
            other = None if wanted.deleted else _titled(notes, wanted.title)
            if other is not None and other.name != name:
                raise AlreadyExists(f"experiment {other.name!r} has the title {wanted.title!r} already")
            unchanged = name in notes and wanted == note
            return None if unchanged else {"kind": "changed", "experiment": _plain(wanted)}

        self._notes.transact(decide)
        return self._notes.state[name]

    def _unnoted(self, name: str) -> Experiment | None:
        """Experiment without a note, derived from its runs; None without runs."""
        runs = self.index(name).refresh().values()
        started = min((run.started_at for run in runs), default=None)
        return None if started is None else Experiment(name, name, started, started)


def _titled(notes: Notes, title: str) -> Experiment | None:
    active = (note for note in notes.values() if not note.deleted)
    return next((note for note in active if note.title == title), None)


def _step(notes: Notes, entry: Entry) -> Notes:
    body = entry.body
    if body["kind"] == "created":
        made = Experiment(body["name"], body["title"], entry.at, entry.at, body["tags"])
        return {**notes, made.name: made}
    changed = replace(_parsed(body["experiment"]), changed_at=entry.at)
    return {**notes, changed.name: changed}


def _encode(notes: Notes) -> list[dict[str, Any]]:
    return [_plain(note) for note in notes.values()]


def _decode(data: list[dict[str, Any]]) -> Notes:
    return {note.name: note for note in map(_parsed, data)}


def _plain(note: Experiment) -> dict[str, Any]:
    return {**asdict(note), "created_at": to_text(note.created_at), "changed_at": to_text(note.changed_at)}


def _parsed(data: Mapping[str, Any]) -> Experiment:
    return Experiment(
        **{**data, "created_at": from_text(data["created_at"]), "changed_at": from_text(data["changed_at"])}
    )


def differences(kinds: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, list[object]]:
    """Values that differ between runs, by column such as `params.lr` (None: absent); for a single run, all its values.

    kinds: kind such as `params` to the values of each run.
    """
    found: dict[str, list[object]] = {}
    for kind, values in kinds.items():
        for name in dict.fromkeys(name for run_values in values for name in run_values):
            column = [run_values.get(name) for run_values in values]
            if len(set(map(repr, column))) > 1 or len(values) == 1:
                found[f"{kind}.{name}"] = column
    return found


def comparison(records: Sequence[RunRecord]) -> pa.Table:
    """Build a table with one row a run: run, name, status, then each parameter and metric in which they differ."""
    import pyarrow as pa  # late: 40 MB, and few processes that know runs compare them

    facts = {fact: [getattr(record, fact) for record in records] for fact in ("id", "name", "status")}
    kinds = {kind: [getattr(record, kind) for record in records] for kind in ("params", "metrics")}
    return pa.table({"run": facts.pop("id"), **facts, **differences(kinds)})


def plot(metric: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Render a self-contained HTML page with the series of `metric`, one line a run (label -> points).

    Raises: RuntimeError if plotly is not installed.
    """
    try:
        from plotly import graph_objects  # late: the extra `plots`, and slow to import
    except ModuleNotFoundError as error:
        raise RuntimeError("this page needs plotly; install it: pip install 'toque[plots]'") from error

    figure = graph_objects.Figure(layout={"title": metric, "xaxis_title": "step", "yaxis_title": metric})
    for label, points in series.items():
        figure.add_scatter(
            x=[point.step for point in points],
            y=[point.value for point in points],
            name=label,
            mode="lines+markers",
        )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
