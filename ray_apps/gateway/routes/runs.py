"""Routes of experiments and runs: list, search, read, their curves and files, and a version made of one."""

from __future__ import annotations

import math
import shutil
import tempfile
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from toque.functions.arguments import Name
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.mlflow.versions import NeedsAcceptance, register_source
from toque.ray_apps.mlflow.wire import DELETED
from toque.registry import Principal, Registry, Role, RunRecord

router = APIRouter(route_class=GuardedRoute, tags=["runs"])

Viewer = Annotated[Principal, allowed(Role.viewer)]
Operator = Annotated[Principal, allowed(Role.operator)]
Point = tuple[int, float | None, datetime]


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


class NewVersionOfRun(BaseModel):
    """Version to make of a run's files. path: folder among them; accept_code: files that can execute code."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=128)
    path: str = Field(default="", max_length=1_000)
    description: str = Field(default="", max_length=2_000)
    accept_code: list[str] = []


class MadeVersion(BaseModel):
    """The version that was made."""

    model: str
    version: int


@router.get("/experiments", response_model=list[ExperimentState])
async def list_experiments(request: Request, _: Viewer) -> Json:
    """List the experiments that are not deleted, the one with the newest run first."""
    registry = (await context_of(request)).registry()

    def listed() -> list[dict[str, Any]]:
        found = [_experiment(registry, each) for each in registry.all_experiments() if not each.deleted]
        found.sort(key=lambda each: each.last_started_at or each.created_at, reverse=True)
        return [each.model_dump(mode="json") for each in found]

    return Json(await services_of(request).run(listed))


@router.get("/runs", response_model=list[RunState])
async def search_runs(
    request: Request,
    _: Viewer,
    experiment: Annotated[list[Name], Query(max_length=50)] = [],  # noqa: B006  # read only
    where: Annotated[str, Query(max_length=4_000)] = "",
    order_by: Annotated[str, Query(max_length=400)] = "attributes.start_time DESC",
    after: Annotated[str | None, Query(pattern=r"^[0-9A-Za-z_-]{1,64}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> Json:
    """Search the runs of experiments, by default of all, by MLflow's filter language; `after` is the id of the last one listed before."""
    registry = (await context_of(request)).registry()

    def found() -> list[dict[str, Any]]:
        names = experiment or [each.name for each in registry.all_experiments() if not each.deleted]
        every = registry.search_runs(names, where, order_by=order_by, limit=_ALL)
        shown = [run for run in every if DELETED not in run.tags]
        start = next((at for at, run in enumerate(shown, 1) if run.id == after), 0) if after else 0
        if after and not start:
            raise Problem(404, f"after={after}: no run of the search has this id; search from the start")
        return [state_of_run(run).model_dump(mode="json") for run in shown[start : start + limit]]

    return Json(await services_of(request).run(found))


@router.get("/runs/{run}", response_model=RunState)
async def get_run(request: Request, run: Name, _: Viewer) -> Json:
    """Read one run with everything it logged."""
    registry = (await context_of(request)).registry()
    record = await services_of(request).run(registry.get_record, run)
    return Json(state_of_run(record).model_dump(mode="json"))


@router.get("/runs/{run}/series", response_model=dict[str, list[Point]])
async def get_series(
    request: Request, run: Name, _: Viewer, points: Annotated[int, Query(ge=2, le=100_000)] = 500
) -> Json:
    """Read step, value and time of each metric in the order of steps, evenly thinned to at most `points` each.

    A value that is no finite number is null. First and last are always there.
    """
    registry = (await context_of(request)).registry()

    def read() -> dict[str, list[list[Any]]]:
        registry.get_record(run)
        found: dict[str, list[Any]] = {}
        for segment in registry.segments(run):
            for name, point in segment.points:
                found.setdefault(name, []).append(point)
        return {name: _thinned(values, points) for name, values in sorted(found.items())}

    return Json(await services_of(request).run(read))


@router.get("/runs/{run}/artifacts/{path:path}", response_class=FileResponse)
async def get_artifact(request: Request, run: Name, path: str, _: Viewer) -> FileResponse:
    """Download one file of a run, its digest checked."""
    registry = (await context_of(request)).registry()

    def fetched() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="toque-artifact-"))
        try:
            return registry.fetch_artifact(registry.get_record(run), path, folder / "file")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    file = await services_of(request).run(fetched)
    return FileResponse(
        file,
        media_type="application/octet-stream",
        filename=PurePosixPath(path).name,
        background=BackgroundTask(shutil.rmtree, file.parent, ignore_errors=True),
    )


@router.post("/runs/{run}/register", response_model=MadeVersion, status_code=201)
async def register_run(request: Request, run: Name, body: NewVersionOfRun, _: Operator) -> Json:
    """Make a version of a model of a run's files, with the run's metrics and lineage."""
    registry = (await context_of(request)).registry()
    tags = {"toque.allow_code": ",".join(body.accept_code)} if body.accept_code else {}

    def made() -> MadeVersion:
        source = f"runs:/{run}/{body.path.strip('/')}"
        try:
            version = register_source(
                registry, body.model, source, run_id=run, tags=tags, description=body.description
            )
        except NeedsAcceptance as refused:
            raise Problem(409, f"{refused}; name them in accept_code", kind="refused") from refused
        return MadeVersion(model=version.model, version=version.version)

    return Json((await services_of(request).run(made)).model_dump(), 201)


_ALL = 10**9


def state_of_run(record: RunRecord) -> RunState:
    """Describe a run's record as the API gives it."""
    content = record.to_json()
    return RunState(
        **content
        | {
            "metrics": {name: _finite(value) for name, value in record.metrics.items()},
            "artifacts": {path: blob.size for path, blob in record.artifacts.items()},
            "datasets": [each.model_dump() for each in record.datasets],
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


def _thinned(values: list[Any], most: int) -> list[list[Any]]:
    ordered = sorted(values, key=lambda point: (point.step, point.at))
    kept = ordered
    if len(ordered) > most:
        kept = [ordered[round(at * (len(ordered) - 1) / (most - 1))] for at in range(most)]
    return [[point.step, _finite(point.value), point.at.isoformat()] for point in kept]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
