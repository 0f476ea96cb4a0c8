"""Artifacts by MLflow's proxy: the client sends and gets files here, and never sees the store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from ray_apps.mlflow.errors import Refusal, unsupported
from ray_apps.mlflow.files import listing, place
from ray_apps.mlflow.services import AtDesk, Desk, Reader, Writer
from ray_apps.mlflow.wire import Json, artifact_root
from registry import InvalidInput, Registry, RunRecord, Segment

router = APIRouter(prefix="/2.0")


@router.get("/mlflow/artifacts/list")
def list_of_run(registry: Reader, run_id: str = "", run_uuid: str = "", path: str = "") -> Json:
    """The files of a run in one folder."""
    record = registry.get_record(run_id or run_uuid)
    return {"root_uri": artifact_root(record.id), "files": listing(record.artifacts, path)}


@router.get("/mlflow-artifacts/artifacts")
def list_proxied(registry: Reader, path: str = "") -> Json:
    """The files in one folder of a run or a version."""
    found = place(registry, path)
    return {"files": listing(found.files, found.path, relative=True)}


@router.get("/mlflow-artifacts/artifacts/{path:path}")
def download(path: str, registry: Reader) -> Response:
    """A file, its digest checked before the first byte leaves."""
    folder = Path(tempfile.mkdtemp(prefix="toque-artifact-"))
    try:
        file = place(registry, path).fetch(registry, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(file, media_type="application/octet-stream", background=gone)


@router.put("/mlflow-artifacts/artifacts/{path:path}")
async def upload(path: str, request: Request, registry: Writer, desk: AtDesk) -> Json:
    """Store a file with a run; it is streamed, so its size is bounded by the disk."""
    with tempfile.TemporaryDirectory(prefix="toque-artifact-") as folder:
        file = Path(folder) / "file"
        with file.open("wb") as sink:
            async for chunk in request.stream():
                await run_in_threadpool(sink.write, chunk)
        await run_in_threadpool(_store, path, file, registry, desk)
    return {}


@router.delete("/mlflow-artifacts/artifacts/{path:path}")
def delete(path: str, _: Writer) -> Json:
    """Refused: what a run made is kept."""
    raise unsupported(f"deleting the artifact {path!r}", "what a run made is kept; delete the run to hide it")


@router.api_route("/mlflow-artifacts/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
def direct(rest: str, _: Reader) -> Json:
    """Refused: uploads in parts and addresses to read the store directly."""
    raise unsupported(rest, "send and get whole files by /mlflow-artifacts/artifacts")


def _store(path: str, file: Path, registry: Registry, desk: Desk) -> None:
    found = place(registry, path)
    if not isinstance(found.owner, RunRecord):
        raise Refusal(
            "PERMISSION_DENIED", f"{path}: a version's files never change; register another version"
        )
    if not found.path:
        raise InvalidInput(f"path {path!r} names no file below the run")
    blob = registry.store_artifact(found.owner.id, found.path, file)
    desk.log(registry, found.owner.id).write(Segment(artifacts={found.path: blob}))
