"""Routes of MLflow's logged models, each stored as a run of its own in one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.artifacts import list_folder
from toque.ray_apps.mlflow.experiments import LOGGED_MODELS, active_experiment
from toque.ray_apps.mlflow.runs import logged_model_log, logged_model_record
from toque.ray_apps.mlflow.services import Logs, OperatorRegistry, ViewerRegistry
from toque.ray_apps.mlflow.wire import Body, Json, Tag, page
from toque.registry import InvalidInput, NotFound, RunLog, RunRecord, Segment
from toque.registry.runs.record import DELETED, Status

router = APIRouter(prefix="/2.0/mlflow/logged-models", route_class=GuardedRoute)

EXPERIMENT, KIND, RUN = (f"{wire.RESERVED}{name}" for name in ("experiment", "model_type", "source_run"))
_STATUSES: dict[str, Status] = {
    "LOGGED_MODEL_PENDING": "RUNNING",
    "LOGGED_MODEL_READY": "FINISHED",
    "LOGGED_MODEL_UPLOAD_FAILED": "FAILED",
}
_MLFLOW_STATUSES = {status: name for name, status in _STATUSES.items()}
_ORDERS = {
    "creation_timestamp": "attributes.start_time",
    "creation_time": "attributes.start_time",
    "last_updated_timestamp": "attributes.end_time",
    "name": "attributes.name",
}
_ENDLESS = 1 << 62


class CreateLoggedModel(Body):
    """A logged model to begin, whose files come later."""

    experiment_id: str = wire.DEFAULT_ID
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    params: Sequence[Tag] = ()
    tags: Sequence[Tag] = ()


class FinalizeLoggedModel(Body):
    """Body that says how a model's upload ended."""

    status: Literal["LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED"]


class TagList(Body):
    """Tags of a logged model to add or replace."""

    tags: Sequence[Tag] = ()


class ParamList(Body):
    """Parameters of a logged model to add."""

    params: Sequence[Tag] = ()


class OrderBy(Body):
    """Column to sort by, and its direction."""

    field_name: str
    ascending: bool = True


class LoggedModelSearch(Body):
    """Filter, order and page of a search for logged models."""

    experiment_ids: Sequence[str] = ()
    filter: str = ""
    max_results: int = 50
    order_by: Sequence[OrderBy] = ()
    page_token: str = ""
    datasets: Sequence[Json] = ()


@router.post("")
def create(body: CreateLoggedModel, registry: OperatorRegistry) -> Json:
    """Begin a logged model, whose files come next."""
    platform_tags = {
        EXPERIMENT: active_experiment(registry, body.experiment_id),
        KIND: body.model_type,
        RUN: body.source_run_id,
    }
    log = RunLog.begin(
        registry,
        LOGGED_MODELS,
        name=body.name,
        tags=wire.pairs(body.tags) | {name: value for name, value in platform_tags.items() if value},
        params={param.key: param.value for param in body.params},
        parent=body.source_run_id or None,
    )
    return {"model": _model(log.record)}


@router.post("/search")
def search(body: LoggedModelSearch, registry: ViewerRegistry) -> Json:
    """Search for logged models that match a filter."""
    if body.datasets:
        raise InvalidInput("datasets: metrics are not kept by data set here; search without it")
    order = [_order(each) for each in body.order_by] or ["attributes.start_time DESC"]
    every = registry.search_runs(LOGGED_MODELS, body.filter, order_by=order, limit=_ENDLESS)
    wanted = set(body.experiment_ids)
    matching = [each for each in every if each.tags.get(EXPERIMENT) in wanted and DELETED not in each.tags]
    found, more = page(matching, size=body.max_results, token=body.page_token)
    return {"models": [_model(each) for each in found], **more}


@router.get("/{model_id}")
def get(model_id: str, registry: ViewerRegistry, allow_deleted: bool = False) -> Json:  # noqa: FBT001, FBT002 - a query
    """Get one logged model by its id."""
    record = logged_model_record(registry, model_id)
    if DELETED in record.tags and not allow_deleted:
        raise NotFound(f"logged model {model_id} was deleted")
    return {"model": _model(record)}


@router.patch("/{model_id}")
def finalize(model_id: str, body: FinalizeLoggedModel, registry: OperatorRegistry, logs: Logs) -> Json:
    """Record how the upload of a logged model ended."""
    return {"model": _model(logged_model_log(logs, registry, model_id).change(status=_STATUSES[body.status]))}


@router.delete("/{model_id}")
def delete(model_id: str, registry: OperatorRegistry, logs: Logs) -> Json:
    """Hide a logged model; its files stay."""
    logged_model_log(logs, registry, model_id).write(Segment(tags={DELETED: "true"}))
    return {}


@router.patch("/{model_id}/tags")
def set_tags(model_id: str, body: TagList, registry: OperatorRegistry, logs: Logs) -> Json:
    """Add or replace tags of a logged model."""
    log = logged_model_log(logs, registry, model_id)
    log.write(Segment(tags={**wire.pairs(body.tags)}))
    return {"model": _model(registry.get_record(log.record.id))}


@router.delete("/{model_id}/tags/{key:path}")
def delete_tag(model_id: str, key: str, registry: OperatorRegistry, logs: Logs) -> Json:
    """Remove a tag from a logged model."""
    logged_model_log(logs, registry, model_id).write(Segment(tags={wire.check_tag(key): None}))
    return {}


@router.post("/{model_id}/params")
def log_params(model_id: str, body: ParamList, registry: OperatorRegistry, logs: Logs) -> Json:
    """Add parameters to a logged model."""
    params = {param.key: param.value for param in body.params}
    logged_model_log(logs, registry, model_id).write(Segment(params=params))
    return {}


@router.get("/{model_id}/artifacts/directories")
def list_artifacts(
    model_id: str, registry: ViewerRegistry, artifact_directory_path: Annotated[str, Query()] = ""
) -> Json:
    """List the files of a logged model in one folder."""
    record = logged_model_record(registry, model_id)
    files = list_folder(record.artifacts, artifact_directory_path)
    return {"root_uri": wire.artifact_root(record.id), "files": files}


def _order(order: OrderBy) -> str:
    column = _ORDERS.get(order.field_name, order.field_name)
    return column if order.ascending else f"{column} DESC"


def _model(record: RunRecord) -> Json:
    model_id = f"m-{record.id}"
    metrics = [
        {"key": key, "value": wire.number(value), "timestamp": wire.to_ms(record.ended_at or record.started_at),
         "step": 0, "model_id": model_id, "run_id": record.tags.get(RUN, "")}
        for key, value in record.metrics.items()
    ]  # fmt: skip
    return {
        "info": {
            "model_id": model_id,
            "experiment_id": record.tags[EXPERIMENT],
            "name": record.name,
            "creation_timestamp_ms": wire.to_ms(record.started_at),
            "last_updated_timestamp_ms": wire.to_ms(record.ended_at or record.started_at),
            "artifact_uri": wire.artifact_root(record.id),
            "status": _MLFLOW_STATUSES.get(record.status, "LOGGED_MODEL_UPLOAD_FAILED"),
            "model_type": record.tags.get(KIND, ""),
            "source_run_id": record.tags.get(RUN, ""),
            "tags": wire.tags_of(record.tags),
        },
        "data": {
            "params": [{"key": key, "value": value} for key, value in record.params.items()],
            "metrics": metrics,
        },
    }
