"""Routes of model versions by MLflow's protocol.

A version is made of files that were logged to this server: of a run, a logged model or another version. They are copied
to the model's blobs, so that later changes of the run do not affect it. A version is READY when the call returns.
Its signature is ours, or that of an MLmodel file, of tensors or of columns.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import Field, ValidationError

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.flavors import SKOPS_FILE, untrusted_types
from toque.functions.model_formats.mlflow_files import name_as_served, read_mlmodel
from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.artifacts import ALLOW_CODE, ArtifactLocation, locate_source, named_code
from toque.ray_apps.mlflow.models import SearchQuery, version_number
from toque.ray_apps.mlflow.services import ModelOperator, ModelViewer, OperatorRegistry, Refusal, unsupported
from toque.ray_apps.mlflow.wire import Body, Description, Json, Tag, page, parse_filter, sort_by
from toque.registry import (
    InvalidInput,
    Lineage,
    ModelVersion,
    NotFound,
    Refused,
    Registry,
    RunRecord,
    Signature,
)

router = APIRouter(prefix="/2.0/mlflow/model-versions", route_class=GuardedRoute)

_ATTRIBUTES = {
    "name": lambda version: version.model,
    "run_id": lambda version: version.lineage.run or "",
    "source_path": lambda version: version.tags.get(wire.SOURCE, ""),
    "version_number": lambda version: version.version,
    "creation_timestamp": lambda version: wire.to_ms(version.created_at),
    "last_updated_timestamp": lambda version: wire.to_ms(version.created_at),
}
SIGNATURE_FILE = "signature.json"
_LARGEST_SIGNATURE_BYTES = 16 << 20
_NUMBERS = {"double", "float", "long", "integer", "boolean"}
_DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES", "str": "BYTES",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


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


class NeedsAcceptance(Refused):
    """Files that can execute code were not named by the one who registers them."""


def register_source(
    registry: Registry,
    model: str,
    source: str,
    *,
    run_id: str = "",
    tags: Mapping[str, str],
    own_tags: Mapping[str, str] = {},
    description: str = "",
) -> ModelVersion:
    """Create a version of the files at `source`, an address such as `runs:/ID/PATH`, with the metrics of their run.

    tags: given by the caller, `toque.allow_code` among them; own_tags: of the platform, empty ones left out.
    Raises: NotFound; InvalidInput; NeedsAcceptance for code that the tags do not name; Refused.
    """
    found = locate_source(registry, source)
    with tempfile.TemporaryDirectory(prefix="toque-version-") as folder:
        lineage, metrics = _origin(registry, found, run_id)
        found.fetch_all(registry, Path(folder))
        try:
            name_as_served(Path(folder))
            require_trusted(registry, model, Path(folder))
            signature = signature_in(Path(folder))
        except ArtifactRefused as refused:
            raise InvalidInput(str(refused)) from refused
        try:
            return registry.create_version(
                model,
                folder,
                signature=signature,
                metrics=metrics,
                tags={**tags, **{name: value for name, value in own_tags.items() if value}},
                lineage=lineage,
                description=description,
                allow_code=named_code(tags),
            )
        except Refused as refused:
            raise NeedsAcceptance(str(refused)) from refused


def _origin(registry: Registry, found: ArtifactLocation, run_id: str) -> tuple[Lineage, dict[str, float]]:
    """Find the lineage of a version of these files, and its metrics: its own over those of the run that made it."""
    owner = found.owner
    if not isinstance(owner, RunRecord):
        return owner.lineage.model_copy(update={"parent": None}), dict(owner.metrics)
    trained = registry.get_record(run_id or str(owner.facts.get("parent") or owner.id))
    lineage = Lineage(run=trained.id, datasets=list(trained.datasets), code=trained.facts.get("code"))
    return lineage, {**trained.metrics, **owner.metrics}


def require_trusted(registry: Registry, model: str, folder: Path) -> None:
    """Check that a file of skops names only types that are safe or that the model's policy trusts. Raises: InvalidInput."""
    path = folder / SKOPS_FILE
    if not path.is_file():
        return
    try:
        trusted = registry.get_model(model).policy.trusted_types
    except NotFound:
        trusted = frozenset()
    with suppress(ImportError):  # without skops nobody serves it here either
        unknown = untrusted_types(path, trusted)
        if unknown:
            raise InvalidInput(
                f"{SKOPS_FILE} holds {unknown}, which skops does not know to be safe, so it could not be served: if you trust "
                f"whoever trained it, have an admin name them in the model's policy, ModelPolicy(trusted_types={unknown}), and "
                "register it again; or let a class in the project's SCORERS load it"
            )


def signature_in(folder: Path) -> Signature | None:
    """Read the signature of the model in `folder`, from `signature.json` or `MLmodel`; None if neither has one.

    Columns become the inputs `numeric` and `categorical`. An output of whole numbers, booleans or texts is taken as classes, for
    which the served model answers the probability of the second; one of fractions as a value.
    Raises: InvalidInput if `signature.json` is not a signature.
    """
    own = folder / SIGNATURE_FILE
    if own.is_file():
        if own.stat().st_size > _LARGEST_SIGNATURE_BYTES:
            raise InvalidInput(
                f"{SIGNATURE_FILE} has {own.stat().st_size:,} bytes: at most {_LARGEST_SIGNATURE_BYTES:,} are read; "
                "give fewer rows as its example"
            )
        try:
            return Signature.model_validate_json(own.read_bytes())
        except ValidationError as error:
            raise InvalidInput(f"{SIGNATURE_FILE}: {error}") from error
    content = read_mlmodel(folder)
    stored = content.get("signature")
    if not stored or not stored.get("inputs") or not stored.get("outputs"):
        return None
    specs = {side: json.loads(stored[side]) for side in ("inputs", "outputs")}
    inputs = _tensors(specs["inputs"], "inputs")
    if inputs is not None and not (
        len(inputs) == 1 and "tensor-spec" in specs["inputs"][0] and _classic(content)
    ):
        outputs = _tensors(specs["outputs"], "outputs")
        return None if outputs is None else Signature.model_validate({"inputs": inputs, "outputs": outputs})
    inputs = inputs if inputs is not None else _tables(specs["inputs"])
    output = _answer(specs["outputs"])
    if inputs is None or output is None:
        return None
    return Signature.model_validate({"inputs": inputs, "outputs": [output]})


def _classic(content: Any) -> bool:
    """Whether the model is of a library whose reader here answers probabilities, whatever its own `predict` does."""
    return bool({"sklearn", "xgboost", "lightgbm"} & set(content.get("flavors", {})))


def _tables(specs: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Convert MLflow columns to the inputs `numeric` and `categorical`; None if one has neither name nor such a type."""
    numbers: list[str] = []
    texts: list[str] = []
    for spec in specs:
        if "name" not in spec or spec.get("type") not in {*_NUMBERS, "string"}:
            return None
        (texts if spec["type"] == "string" else numbers).append(spec["name"])
    inputs = [("numeric", "FP32", numbers), ("categorical", "BYTES", texts)]
    return [
        {"name": name, "datatype": datatype, "shape": [-1, len(columns)], "columns": columns}
        for name, datatype, columns in inputs
        if columns
    ]


def _answer(specs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Convert the one output of a library's model: fractions are a value, other types classes; None for several outputs."""
    if len(specs) != 1:
        return None
    tensor = specs[0].get("tensor-spec")
    kind = tensor["dtype"] if tensor else specs[0].get("type", "")
    if tensor and len(tensor["shape"]) > 1 and tensor["shape"][1] > 1:
        return {"name": "probability", "datatype": "FP32", "shape": [-1, tensor["shape"][1]]}
    name = "value" if kind in {"double", "float", "float32", "float64"} else "probability"
    return {"name": name, "datatype": "FP32", "shape": [-1, 1]}


def _tensors(specs: list[dict[str, Any]], side: str) -> list[dict[str, Any]] | None:
    """Convert MLflow tensor specs to the registry's form; None if a spec is not a tensor. Unnamed ones get the name `input` or `output`."""
    found = []
    for spec in specs:
        tensor = spec.get("tensor-spec")
        datatype = _DATATYPES.get(tensor["dtype"]) if tensor else None
        if tensor is None or datatype is None:
            return None
        found.append({"name": spec.get("name", side[:-1]), "datatype": datatype, "shape": tensor["shape"]})
    return found
