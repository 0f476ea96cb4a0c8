"""Model versions by MLflow's protocol.

A version is made of files that are at this server already; they are copied to the model's blobs, so that what the
run does later changes nothing. It is READY when the call returns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter
from pydantic import Field

from ray_apps.mlflow import wire
from ray_apps.mlflow.errors import Refusal, unsupported
from ray_apps.mlflow.files import ALLOW_CODE, Place, accepted, source
from ray_apps.mlflow.models import Asked, number_of
from ray_apps.mlflow.search import holds, ordered, page
from ray_apps.mlflow.services import Reader, Writer
from ray_apps.mlflow.signature import signature_in
from ray_apps.mlflow.wire import Body, Json, Tag
from registry import Lineage, ModelVersion, NotFound, Refused, Registry, RunRecord

router = APIRouter(prefix="/2.0/mlflow/model-versions")

_ATTRIBUTES = {
    "name": lambda version: version.model,
    "run_id": lambda version: version.lineage.run or "",
    "source_path": lambda version: version.tags.get(wire.SOURCE, ""),
    "version_number": lambda version: version.version,
    "creation_timestamp": lambda version: wire.to_ms(version.created_at),
    "last_updated_timestamp": lambda version: wire.to_ms(version.created_at),
}


class Which(Body):
    """A version."""

    name: str = Field(min_length=1)
    version: str


class Create(Body):
    """A new version of files that were logged."""

    name: str = Field(min_length=1)
    source: str
    run_id: str = ""
    model_id: str = ""
    run_link: str = ""
    description: str = ""
    tags: Sequence[Tag] = ()


class TagOf(Which, Tag):
    """A tag of a version."""


@router.post("/create")
def create(body: Create, registry: Writer) -> Json:
    """Register files of a run, a logged model or another version."""
    found = source(registry, f"models:/{body.model_id}" if body.model_id else body.source)
    asked = wire.pairs(body.tags)
    model_id = body.model_id or _model_id(body.source)
    own = {wire.SOURCE: body.source, wire.MODEL_ID: model_id, wire.RUN_LINK: body.run_link}
    with tempfile.TemporaryDirectory(prefix="toque-version-") as folder:
        lineage, metrics = _origin(registry, found, body.run_id)
        found.fetch_all(registry, Path(folder))
        try:
            made = registry.create_version(
                body.name,
                folder,
                signature=signature_in(Path(folder)),
                metrics=metrics,
                tags=asked | {name: value for name, value in own.items() if value},
                lineage=lineage,
                description=body.description,
                allow_code=accepted(asked),
            )
        except Refused as refused:
            hint = f"by this protocol: register_model(…, tags={{{ALLOW_CODE!r}: 'path,path'}})"
            raise Refusal("PERMISSION_DENIED", f"{refused} ({hint})") from refused
    return {"model_version": wire.version(registry.get_model(body.name), made)}


@router.get("/get")
def get(name: str, version: str, registry: Reader) -> Json:
    """One version."""
    return {"model_version": wire.version(registry.get_model(name), _living(registry, name, version))}


@router.get("/get-download-uri")
def get_download_uri(name: str, version: str, registry: Reader) -> Json:
    """Where its files are read: here, digests checked."""
    return {"artifact_uri": wire.version_root(_living(registry, name, version))}


@router.get("/search")
def search(asked: Asked, registry: Reader) -> Json:
    """Versions that a filter holds for, newest first."""
    is_it = holds(asked.filter, _ATTRIBUTES)
    every = [each for name in registry.list_models() for each in registry.list_versions(name)]
    order = asked.order_by or ["last_updated_timestamp DESC", "name", "version_number DESC"]
    seen = ordered([each for each in every if is_it(each)], order, _ATTRIBUTES)
    found, more = page(seen, size=asked.max_results, token=asked.page_token)
    return {"model_versions": [wire.version(registry.get_model(each.model), each) for each in found], **more}


@router.post("/set-tag")
def set_tag(body: TagOf, registry: Writer) -> Json:
    """Add or replace a tag."""
    registry.set_version_tags(body.name, number_of(body.version), {wire.check_tag(body.key): body.value})
    return {}


@router.delete("/delete-tag")
def delete_tag(body: TagOf, registry: Writer) -> Json:
    """Take a tag away."""
    registry.set_version_tags(body.name, number_of(body.version), {wire.check_tag(body.key): None})
    return {}


@router.delete("/delete")
def delete(body: Which, registry: Writer) -> Json:
    """Delete a version, unless something points to it; its number is never used again."""
    registry.delete_version(body.name, number_of(body.version), reason="by MLflow's protocol")
    return {}


@router.patch("/update")
def update(body: Which, _: Writer) -> Json:
    """Refused: a version does not change."""
    raise unsupported(f"describing {body.name}@{body.version} anew", "versions do not change; set a tag")


@router.post("/transition-stage")
def transition(body: Which, _: Writer) -> Json:
    """Refused: aliases do what stages did."""
    raise unsupported(f"a stage for {body.name}@{body.version}", "set an alias, such as champion")


def _living(registry: Registry, name: str, version: str) -> ModelVersion:
    found = registry.get_version(name, number_of(version))
    if found.deleted_at is not None:
        raise NotFound(f"{name}@{version} was deleted at {found.deleted_at.isoformat()}")
    return found


def _model_id(uri: str) -> str:
    """The logged model that a source names, or ""."""
    path = uri.removeprefix("models:").lstrip("/")
    return path.partition("/")[0] if uri.startswith("models:") and path.startswith("m-") else ""


def _origin(registry: Registry, found: Place, run_id: str) -> tuple[Lineage, dict[str, float]]:
    """Where a version of these files came from, and its metrics: its own, then those of the run that made it."""
    owner = found.owner
    if not isinstance(owner, RunRecord):
        return owner.lineage.model_copy(update={"parent": None}), dict(owner.metrics)
    trained = registry.get_record(run_id or str(owner.facts.get("parent") or owner.id))
    lineage = Lineage(run=trained.id, datasets=list(trained.datasets), code=trained.facts.get("code"))
    return lineage, {**trained.metrics, **owner.metrics}
