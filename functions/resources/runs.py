"""Experiments and runs: list, search and read them, with the curves of their metrics."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from toque.functions.arguments import Name
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import NotFound, Registry, RunRecord
from toque.registry.runs.record import DELETED

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Point = Annotated[
    list[int | float | Moment | None],
    Field(min_length=3, max_length=3, description="Step, value or null, and time."),
]
RunId = Annotated[Name, Field(description="Id of the run.")]
_ALL = 10**9


class ExperimentState(BaseModel):
    """An experiment with its title, tags and number of runs, those that are running among them."""

    name: str
    title: str
    tags: dict[str, str]
    created_at: datetime
    runs: int
    running: int
    last_started_at: datetime | None


class RunState(BaseModel):
    """A run with everything it logged. metrics: last values; artifacts: sizes by path; facts: code, parent, resources, and the environment of one run."""

    id: str
    experiment: str
    name: str
    status: str
    actor: str
    started_at: datetime
    ended_at: datetime | None
    params: dict[str, str]
    metrics: dict[str, float | None]
    tags: dict[str, str]
    artifacts: dict[str, int]
    datasets: list[dict[str, Any]]
    facts: dict[str, Any]


@function(route="GET /experiments", role="viewer")
def list_experiments() -> list[ExperimentState]:
    """List the experiments that are not deleted, the one with the newest run first."""
    registry = context().registry()
    states = [_experiment(registry, noted) for noted in registry.all_experiments() if not noted.deleted]
    return sorted(states, key=lambda state: state.last_started_at or state.created_at, reverse=True)


@function(route="GET /runs", role="viewer")
def search_runs(
    experiment: Annotated[
        list[Name], Field(max_length=50, description="Names of experiments; all unless given.")
    ] = [],  # noqa: B006  # read only
    where: Annotated[
        str, Field(max_length=4_000, description="Condition that they meet, in MLflow's filter language.")
    ] = "",
    order_by: Annotated[
        str, Field(max_length=400, description="Field that they are ordered by, with ASC or DESC.")
    ] = "attributes.start_time DESC",
    after: Annotated[
        str | None,
        Field(pattern=r"^[0-9A-Za-z_-]{1,64}$", description="Id of the last one of the page before."),
    ] = None,
    limit: Annotated[int, Field(ge=1, le=10_000, description="Number of runs at most.")] = 100,
) -> list[RunState]:
    """Search the runs of experiments."""
    registry = context().registry()
    names = experiment or [noted.name for noted in registry.all_experiments() if not noted.deleted]
    every = registry.search_runs(names, where, order_by=order_by, limit=_ALL)
    shown = [run for run in every if DELETED not in run.tags]
    start = next((at for at, run in enumerate(shown, 1) if run.id == after), 0) if after else 0
    if after and not start:
        raise NotFound(f"after={after}: no run of the search has this id; search from the start")
    return [_state_of_run(run) for run in shown[start : start + limit]]


@function(route="GET /runs/{run}", role="viewer")
def get_run(run: RunId) -> RunState:
    """Read one run with everything it logged."""
    return _state_of_run(context().registry().get_record(run))


@function(route="GET /runs/{run}/series", role="viewer")
def run_series(
    run: RunId,
    points: Annotated[
        int, Field(ge=2, le=100_000, description="Number of points of a metric at most.")
    ] = 500,
) -> dict[str, list[Point]]:
    """Read step, value and time of each metric in the order of steps, evenly thinned.

    A value that is no finite number is null. First and last are always there.
    """
    registry = context().registry()
    registry.get_record(run)
    series: dict[str, list[Any]] = {}
    for segment in registry.segments(run):
        for name, point in segment.points:
            series.setdefault(name, []).append(point)
    return {name: _thinned(values, points) for name, values in sorted(series.items())}


def _state_of_run(record: RunRecord) -> RunState:
    """Describe a run's record as the API gives it."""
    content = record.to_json()
    return RunState(
        **content
        | {
            "metrics": {name: _finite(value) for name, value in record.metrics.items()},
            "artifacts": {path: blob.size for path, blob in record.artifacts.items()},
            "datasets": [dataset.model_dump() for dataset in record.datasets],
        }
    )


def _experiment(registry: Registry, noted: Any) -> ExperimentState:
    runs = registry.index(noted.name).refresh().values()
    return ExperimentState(
        name=noted.name,
        title=noted.title,
        tags=dict(noted.tags),
        created_at=noted.created_at,
        runs=len(runs),
        running=sum(run.status == "RUNNING" for run in runs),
        last_started_at=max((run.started_at for run in runs), default=None),
    )


def _thinned(values: list[Any], most: int) -> list[Point]:
    ordered = sorted(values, key=lambda point: (point.step, point.at))
    thinned = ordered
    if len(ordered) > most:
        thinned = [ordered[round(at * (len(ordered) - 1) / (most - 1))] for at in range(most)]
    return [[point.step, _finite(point.value), point.at.isoformat()] for point in thinned]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
