"""Files behind MLflow's addresses: of a run `runs/{id}/{path}`, of a version `models/{name}/{number}/{path}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_apps.mlflow.wire import Json
from registry import Blob, InvalidInput, ModelVersion, NotFound, Registry, RunRecord

ALLOW_CODE = "toque.allow_code"  # a version's tag: files that can execute code, accepted by name
_SCHEME = "mlflow-artifacts:"
_RUN_PARTS, _VERSION_PARTS = 2, 3


@dataclass(frozen=True, slots=True)
class Place:
    """What an address names: the files of a run or of a version, and a path among them ("": all)."""

    owner: RunRecord | ModelVersion
    path: str

    @property
    def files(self) -> Mapping[str, Blob]:
        """Every file of the owner, by path."""
        return self.owner.artifacts if isinstance(self.owner, RunRecord) else self.owner.files

    def fetch(self, registry: Registry, to: Path) -> Path:
        """Write the file that is named below the folder `to`, its digest checked.

        Raises: NotFound; Damaged; Refused for code that was not accepted.
        """
        if isinstance(self.owner, RunRecord):
            return registry.fetch_artifact(self.owner, self.path, to / "file")
        folder = registry.download(
            self.owner.model, self.owner.version, to, paths=[self.path], allow_code=accepted(self.owner.tags)
        )
        return folder / self.path

    def fetch_all(self, registry: Registry, to: Path) -> None:
        """Write every file below the path that is named to the folder `to`. Raises: NotFound; Damaged; Refused."""
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
            allowed = accepted(self.owner.tags)
            registry.download(self.owner.model, self.owner.version, to, paths=inside, allow_code=allowed)


def place(registry: Registry, address: str) -> Place:
    """What an address names, as in `runs/{id}/model/MLmodel`.

    Raises: NotFound; InvalidInput for what is no address here.
    """
    parts = PurePosixPath(address.strip("/")).parts
    if any(part in {"..", "."} for part in parts):
        raise InvalidInput(f"path {address!r} leaves its folder")
    if len(parts) >= _RUN_PARTS and parts[0] == "runs":
        return Place(registry.get_record(parts[1]), "/".join(parts[_RUN_PARTS:]))
    if len(parts) >= _VERSION_PARTS and parts[0] == "models" and parts[2].isdecimal():
        return Place(registry.get_version(parts[1], int(parts[2])), "/".join(parts[_VERSION_PARTS:]))
    raise InvalidInput(f"path {address!r} is neither runs/ID/… nor models/NAME/NUMBER/…")


def source(registry: Registry, uri: str) -> Place:
    """What the source of a new version names: files that are at this server.

    Raises: InvalidInput for a place that is not, whose files nobody could vouch for; NotFound.
    """
    scheme, _, rest = uri.partition(":")
    path = rest.lstrip("/")
    if uri.startswith((_SCHEME, "runs:")):
        return place(registry, path if scheme != "runs" else f"runs/{path}")
    if scheme == "models" and path.startswith("m-"):
        model_id, _, below = path.partition("/")
        return place(registry, f"runs/{model_id.removeprefix('m-')}/{below}")
    if scheme == "models":
        return place(registry, f"models/{path}")
    raise InvalidInput(
        f"source {uri!r}: a version's files must be logged to this server first; register 'runs:/ID/PATH' or 'models:/ID'"
    )


def accepted(tags: Mapping[str, str]) -> list[str]:
    """Files that can execute code and were accepted by name, in a version's tag."""
    return [name.strip() for name in tags.get(ALLOW_CODE, "").split(",") if name.strip()]


def listing(files: Mapping[str, Blob], folder: str, *, relative: bool = False) -> list[Json]:
    """The files and folders directly in `folder`.

    relative: paths from the folder on, as the artifact proxy gives them; else from the root.
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
