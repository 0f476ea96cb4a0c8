"""Routes of model versions by MLflow's protocol.

A version is made of files that were logged to this server; they are copied to the model's blobs, so that later changes
of the run do not affect it. A version is READY when the call returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.errors import Refusal, unsupported
from toque.ray_apps.mlflow.files import ALLOW_CODE
from toque.ray_apps.mlflow.model_files import NeedsAcceptance, register_source
from toque.ray_apps.mlflow.models import SearchQuery, version_number
from toque.ray_apps.mlflow.search import page, parse_filter, sort_by
from toque.ray_apps.mlflow.services import ModelOperator, ModelViewer, OperatorRegistry
from toque.ray_apps.mlflow.wire import Body, Description, Json, Tag
from toque.registry import ModelVersion, NotFound, Registry

router = APIRouter(prefix="/2.0/mlflow/model-versions", route_class=GuardedRoute)

_ATTRIBUTES = {
    "name": lambda version: version.model,
    "run_id": lambda version: version.lineage.run or "",
    "source_path": lambda version: version.tags.get(wire.SOURCE, ""),
    "version_number": lambda version: version.version,
    "creation_timestamp": lambda version: wire.to_ms(version.created_at),
    "last_updated_timestamp": lambda version: wire.to_ms(version.created_at),
}


class VersionId(Body):
    """Body that names a model version."""

    name: str = Field(min_length=1)
    version: str


class CreateVersion(Body):
    """A version to create from files that were logged."""

    name: str = Field(min_length=1)
    source: str
    run_id: str = ""
    model_id: str = ""
    run_link: str = ""
    description: Description = ""
    tags: Sequence[Tag] = ()


class VersionTag(VersionId, Tag):
    """Body that names a tag of a version."""


@router.post("/create")
def create(body: CreateVersion, registry: OperatorRegistry) -> Json:
    """Create a version from files of a run, a logged model or another version."""
    source = f"models:/{body.model_id}" if body.model_id else body.source
    model_id = body.model_id or _model_id(body.source)
    platform_tags = {wire.SOURCE: body.source, wire.MODEL_ID: model_id, wire.RUN_LINK: body.run_link}
    try:
        made = register_source(
            registry,
            body.name,
            source,
            run_id=body.run_id,
            tags=wire.pairs(body.tags),
            own_tags=platform_tags,
            description=body.description,
        )
    except NeedsAcceptance as refused:
        hint = f"by this protocol: register_model(…, tags={{{ALLOW_CODE!r}: 'path,path'}})"
        raise Refusal("PERMISSION_DENIED", f"{refused} ({hint})") from refused
    return {"model_version": wire.version(registry.get_model(body.name), made)}


@router.get("/get")
def get(name: str, version: str, models: ModelViewer) -> Json:
    """Get one version of a model."""
    registry = models.to(name)
    found = _undeleted_version(registry, name, version)
    return {"model_version": wire.version(registry.get_model(name), found)}


@router.get("/get-download-uri")
def get_download_uri(name: str, version: str, models: ModelViewer) -> Json:
    """Get the address of a version's files: this server, which checks their digests."""
    return {"artifact_uri": wire.version_root(_undeleted_version(models.to(name), name, version))}


@router.get("/search")
def search(query: SearchQuery, models: ModelViewer) -> Json:
    """Search for versions that match a filter, newest first."""
    matches = parse_filter(query.filter, _ATTRIBUTES)
    every = [each for name in models.models() for each in models.to(name).list_versions(name)]
    order = query.order_by or ["last_updated_timestamp DESC", "name", "version_number DESC"]
    matching = sort_by([each for each in every if matches(each)], order, _ATTRIBUTES)
    found, more = page(matching, size=query.max_results, token=query.page_token)
    shown = [wire.version(models.to(each.model).get_model(each.model), each) for each in found]
    return {"model_versions": shown, **more}


@router.post("/set-tag")
def set_tag(body: VersionTag, models: ModelOperator) -> Json:
    """Add or replace a tag of a version."""
    models.to(body.name).set_version_tags(
        body.name, version_number(body.version), {wire.check_tag(body.key): body.value}
    )
    return {}


@router.delete("/delete-tag")
def delete_tag(body: VersionTag, models: ModelOperator) -> Json:
    """Remove a tag from a version."""
    models.to(body.name).set_version_tags(
        body.name, version_number(body.version), {wire.check_tag(body.key): None}
    )
    return {}


@router.delete("/delete")
def delete(body: VersionId, models: ModelOperator) -> Json:
    """Delete a version to which no alias or traffic points; its number is never used again."""
    models.to(body.name).delete_version(
        body.name, version_number(body.version), reason="by MLflow's protocol"
    )
    return {}


@router.patch("/update")
def update(body: VersionId, models: ModelOperator) -> Json:
    """Refuse to change a description, as versions do not change."""
    models.to(body.name)
    raise unsupported(f"describing {body.name}@{body.version} anew", "versions do not change; set a tag")


@router.post("/transition-stage")
def transition(body: VersionId, models: ModelOperator) -> Json:
    """Refuse to set a stage, as aliases replace stages."""
    models.to(body.name)
    raise unsupported(f"a stage for {body.name}@{body.version}", "set an alias, such as champion")


def _undeleted_version(registry: Registry, name: str, version: str) -> ModelVersion:
    found = registry.get_version(name, version_number(version))
    if found.deleted_at is not None:
        raise NotFound(f"{name}@{version} was deleted at {found.deleted_at.isoformat()}")
    return found


def _model_id(uri: str) -> str:
    """Parse the id of the logged model that a source names; "" if it names no logged model."""
    path = uri.removeprefix("models:").lstrip("/")
    return path.partition("/")[0] if uri.startswith("models:") and path.startswith("m-") else ""
