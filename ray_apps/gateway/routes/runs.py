"""Routes of a run's files: download one, and make a version of a model of them; what else is asked of runs are functions."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.arguments import Name
from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Operator, Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.ray_apps.mlflow.artifacts import file_response
from toque.ray_apps.mlflow.versions import NeedsAcceptance, register_source

router = APIRouter(route_class=GuardedRoute, tags=["runs"])


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


@router.get("/runs/{run}/artifacts/{path:path}", response_class=FileResponse)
async def get_artifact(request: Request, run: Name, path: str, _: Viewer) -> FileResponse:
    """Download one file of a run, its digest checked."""
    registry = (await context_of(request)).registry()

    def fetch(folder: Path) -> Path:
        return registry.fetch_artifact(registry.get_record(run), path, folder / "file")

    return await services_of(request).run(file_response, fetch, name=PurePosixPath(path).name)


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
