"""Routes of artifacts by MLflow's proxy: clients send and get files here, and need no access to the store.

Addresses name files of runs (`runs/{id}/{path}`) and of versions (`models/{name}/{number}/{path}`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow.services import (
    Logs,
    ModelViewer,
    OperatorRegistry,
    Refusal,
    RunLogs,
    ViewerRegistry,
    unsupported,
)
from toque.ray_apps.mlflow.wire import Json, artifact_root
from toque.registry import Blob, InvalidInput, ModelVersion, NotFound, Registry, RunRecord, Segment

router = APIRouter(prefix="/2.0", route_class=GuardedRoute)
ALLOW_CODE = "toque.allow_code"  # a new version's tag: its publisher knows that these files can execute code
_SCHEME = "mlflow-artifacts:"
_RUN_PARTS, _VERSION_PARTS = 2, 3


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
    return file_response(lambda folder: locate(registry, path).fetch(registry, folder))


def file_response(fetch: Callable[[Path], Path], *, name: str | None = None) -> FileResponse:
    """Fetch a file into a folder that is removed once it is sent. name: under which a browser saves it. Raises: as `fetch`."""
    folder = Path(tempfile.mkdtemp(prefix="toque-artifact-"))
    try:
        file = fetch(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(file, media_type="application/octet-stream", filename=name, background=cleanup)


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


@dataclass(frozen=True, slots=True)
class ArtifactLocation:
    """Target of an artifact address: a run or a version, and a path among its files ("": all)."""

    owner: RunRecord | ModelVersion
    path: str

    @property
    def files(self) -> Mapping[str, Blob]:
        """All files of the run or version, by path."""
        return self.owner.artifacts if isinstance(self.owner, RunRecord) else self.owner.files

    def fetch(self, registry: Registry, to: Path) -> Path:
        """Download the file at this location below the folder `to`, and check its digest.

        Raises: NotFound; Damaged; Refused for code that was not accepted.
        """
        if isinstance(self.owner, RunRecord):
            return registry.fetch_artifact(self.owner, self.path, to / "file")
        folder = registry.download(
            self.owner.model,
            self.owner.version,
            to,
            paths=[self.path],
            allow_code=registry.accepted_code(self.owner.model, self.owner.version),
        )
        return folder / self.path

    def fetch_all(self, registry: Registry, to: Path) -> None:
        """Download every file below this location to the folder `to`, to be registered again: nothing loads them.

        Raises: NotFound; Damaged; Refused.
        """
        below = f"{self.path}/" if self.path else ""
        inside = [path for path in self.files if path.startswith(below)]
        if not inside:
            raise NotFound(
                f"there are no files at {self.path or 'the root'!r}; log the model before registering it"
            )
        for path in inside:
            target = to / path.removeprefix(below)
            if isinstance(self.owner, RunRecord):
                registry.fetch_artifact(self.owner, path, target)
        if isinstance(self.owner, ModelVersion):
            owner = self.owner
            registry.download(owner.model, owner.version, to, paths=inside, allow_code=owner.code_files)


def locate(registry: Registry, address: str) -> ArtifactLocation:
    """Resolve an artifact address such as `runs/{id}/model/MLmodel`.

    Raises: NotFound; InvalidInput if it is not an address of a run's or version's files.
    """
    parts = _parts(address)
    if len(parts) >= _RUN_PARTS and parts[0] == "runs":
        return ArtifactLocation(registry.get_record(parts[1]), "/".join(parts[_RUN_PARTS:]))
    if len(parts) >= _VERSION_PARTS and parts[0] == "models" and parts[2].isdecimal():
        return ArtifactLocation(
            registry.get_version(parts[1], int(parts[2])), "/".join(parts[_VERSION_PARTS:])
        )
    raise InvalidInput(f"path {address!r} is neither runs/ID/… nor models/NAME/NUMBER/…")


def model_of(address: str) -> str | None:
    """Find the model whose version an artifact address names; None for any other address. Raises: InvalidInput."""
    parts = _parts(address)
    return parts[1] if len(parts) > 1 and parts[0] == "models" else None


def _parts(address: str) -> tuple[str, ...]:
    parts = PurePosixPath(address.strip("/")).parts
    if any(part in {"..", "."} for part in parts):
        raise InvalidInput(f"path {address!r} leaves its folder")
    return parts


def locate_source(registry: Registry, uri: str) -> ArtifactLocation:
    """Resolve the source of a new version: files that were logged to this server.

    Raises: InvalidInput for a source elsewhere, whose files have no verified digest; NotFound.
    """
    scheme, _, rest = uri.partition(":")
    path = rest.lstrip("/")
    if uri.startswith((_SCHEME, "runs:")):
        return locate(registry, path if scheme != "runs" else f"runs/{path}")
    if scheme == "models" and path.startswith("m-"):
        model_id, _, below = path.partition("/")
        return locate(registry, f"runs/{model_id.removeprefix('m-')}/{below}")
    if scheme == "models":
        return locate(registry, f"models/{path}")
    raise InvalidInput(
        f"source {uri!r}: a version's files must be logged to this server first; register 'runs:/ID/PATH' or 'models:/ID'"
    )


def named_code(tags: Mapping[str, str]) -> list[str]:
    """Parse the tag by which a publisher names files that can execute code; it lets nobody download them."""
    return [name.strip() for name in tags.get(ALLOW_CODE, "").split(",") if name.strip()]


def list_folder(files: Mapping[str, Blob], folder: str, *, relative: bool = False) -> list[Json]:
    """List the files and folders directly in `folder`.

    relative: paths begin at the folder, as in the artifact proxy; else at the root.
    """
    below = f"{folder.strip('/')}/" if folder.strip("/") else ""
    found: dict[str, Json] = {}
    for path, blob in sorted(files.items()):
        if not path.startswith(below):
            continue
        name, slash, _ = path.removeprefix(below).partition("/")
        shown = name if relative else below + name
        found[name] = {"path": shown, "is_dir": bool(slash)} | ({} if slash else {"file_size": blob.size})
    return list(found.values())
