"""Routes of artifacts by MLflow's proxy: clients send and get files here, and need no access to the store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow.errors import Refusal, unsupported
from toque.ray_apps.mlflow.files import list_folder, locate, model_of
from toque.ray_apps.mlflow.services import Logs, ModelViewer, OperatorRegistry, RunLogs, ViewerRegistry
from toque.ray_apps.mlflow.wire import Json, artifact_root
from toque.registry import InvalidInput, Registry, RunRecord, Segment

router = APIRouter(prefix="/2.0", route_class=GuardedRoute)


@router.get("/mlflow/artifacts/list")
def list_of_run(registry: ViewerRegistry, run_id: str = "", run_uuid: str = "", path: str = "") -> Json:
    """List the files of a run in one folder."""
    record = registry.get_record(run_id or run_uuid)
    return {"root_uri": artifact_root(record.id), "files": list_folder(record.artifacts, path)}


@router.get("/mlflow-artifacts/artifacts")
def list_proxied(models: ModelViewer, path: str = "") -> Json:
    """List the files in one folder of a run or a version."""
    found = locate(models.to(model_of(path)), path)
    return {"files": list_folder(found.files, found.path, relative=True)}


@router.get("/mlflow-artifacts/artifacts/{path:path}")
def download(path: str, models: ModelViewer) -> Response:
    """Send a file; its digest is checked before the first byte is sent."""
    registry = models.to(model_of(path))
    folder = Path(tempfile.mkdtemp(prefix="toque-artifact-"))
    try:
        file = locate(registry, path).fetch(registry, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(file, media_type="application/octet-stream", background=cleanup)


@router.put("/mlflow-artifacts/artifacts/{path:path}")
async def upload(path: str, request: Request, registry: OperatorRegistry, logs: Logs) -> Json:
    """Store a file with a run; the body is streamed, so only the disk limits its size."""
    with tempfile.TemporaryDirectory(prefix="toque-artifact-") as folder:
        file = Path(folder) / "file"
        with file.open("wb") as sink:
            async for chunk in request.stream():
                await run_in_threadpool(sink.write, chunk)
        await run_in_threadpool(_store, path, file, registry, logs)
    return {}


@router.delete("/mlflow-artifacts/artifacts/{path:path}")
def delete(path: str, _: OperatorRegistry) -> Json:
    """Refuse to delete an artifact, as what a run made is kept."""
    raise unsupported(f"deleting the artifact {path!r}", "what a run made is kept; delete the run to hide it")


@router.api_route("/mlflow-artifacts/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
def refuse_direct_access(rest: str, _: ViewerRegistry) -> Json:
    """Refuse uploads in parts and addresses for reading the store directly."""
    raise unsupported(rest, "send and get whole files by /mlflow-artifacts/artifacts")


def _store(path: str, file: Path, registry: Registry, logs: RunLogs) -> None:
    found = locate(registry, path)
    if not isinstance(found.owner, RunRecord):
        raise Refusal(
            "PERMISSION_DENIED", f"{path}: a version's files never change; register another version"
        )
    if not found.path:
        raise InvalidInput(f"path {path!r} names no file below the run")
    blob = registry.store_artifact(found.owner.id, found.path, file)
    logs.of(registry, found.owner.id).write(Segment(artifacts={found.path: blob}))
