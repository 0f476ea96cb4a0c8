"""Routes of runs by MLflow's protocol; each call is stored before its response.

Runs that are begun without a name get one made up, as by MLflow's own server, so that people can tell them apart.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import Field, model_validator

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.experiments import LOGGED_MODELS, active_experiment, is_in_view
from toque.ray_apps.mlflow.services import Logs, OperatorRegistry, RunLogs, ViewerRegistry
from toque.ray_apps.mlflow.wire import Body, Json, Tag, page, runs_column
from toque.registry import InvalidInput, NotFound, Point, Registry, RunLog, RunRecord, Segment
from toque.registry.runs.record import DELETED

router = APIRouter(prefix="/2.0/mlflow", route_class=GuardedRoute)

_NAME, _PARENT = "mlflow.runName", "mlflow.parentRunId"
_ENDLESS = 1 << 62


class RunId(Body):
    """Body that names a run; old clients send run_uuid."""

    run_id: str = ""
    run_uuid: str = ""

    @model_validator(mode="after")
    def _take_run_uuid(self) -> RunId:
        self.run_id = self.run_id or self.run_uuid
        if not self.run_id:
            raise ValueError("run_id is missing")
        return self


class CreateRun(Body):
    """A run to begin, with its tags."""

    experiment_id: str = wire.DEFAULT_ID
    run_name: str = ""
    start_time: int | None = None
    tags: Sequence[Tag] = ()


class UpdateRun(RunId):
    """Body that changes a run's status or name."""

    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"] | None = None
    end_time: int | None = None
    run_name: str | None = None


class MetricValue(Body):
    """Value of a metric at one step."""

    key: str = Field(min_length=1)
    value: float
    timestamp: int = 0
    step: int = 0
    model_id: str = ""


class LogMetric(RunId, MetricValue):
    """Value of a metric of one run."""


class RunKeyValue(RunId, Tag):
    """Body with a parameter or tag of one run."""


class LogBatch(RunId):
    """Body with metrics, parameters and tags of one run."""

    metrics: Sequence[MetricValue] = ()
    params: Sequence[Tag] = ()
    tags: Sequence[Tag] = ()


class LogInputs(RunId):
    """Body with the data sets that a run reads, as the client describes them."""

    datasets: Sequence[Json] = ()


class LogOutputs(RunId):
    """Body with the models that a run made."""

    models: Sequence[Json] = ()


class LogModel(RunId):
    """Body with a model's description, from clients of MLflow 2."""

    model_json: str


class RunSearch(Body):
    """Filter, order and page of a search for runs."""

    experiment_ids: Sequence[str] = ()
    filter: str = ""
    run_view_type: str = "ACTIVE_ONLY"
    max_results: int = 1000
    order_by: Sequence[str] = ()
    page_token: str = ""


@router.post("/runs/create")
def create(body: CreateRun, registry: OperatorRegistry) -> Json:
    """Begin a run in an experiment."""
    tags = wire.pairs(body.tags)
    name = body.run_name or tags.get(_NAME) or made_up_name()
    log = RunLog.begin(
        registry,
        active_experiment(registry, body.experiment_id),
        name=name,
        tags=tags | {_NAME: name},
        started_at=wire.from_ms(body.start_time),
        parent=tags.get(_PARENT),
    )
    return {"run": wire.run(log.record)}


@router.get("/runs/get")
def get(registry: ViewerRegistry, run_id: str = "", run_uuid: str = "") -> Json:
    """Get one run with everything it logged."""
    return {"run": wire.run(registry.get_record(run_id or run_uuid))}


@router.post("/runs/update")
def update(body: UpdateRun, registry: OperatorRegistry, logs: Logs) -> Json:
    """End a run, resume it, or rename it."""
    log = logs.of(registry, body.run_id)
    if body.run_name:
        log.write(Segment(tags={_NAME: body.run_name}))
    status = "RUNNING" if body.status == "SCHEDULED" else body.status
    record = log.change(status=status, name=body.run_name or None, ended_at=wire.from_ms(body.end_time))
    return {"run_info": wire.run_info(record)}


@router.post("/runs/delete")
def delete(body: RunId, registry: OperatorRegistry, logs: Logs) -> Json:
    """Hide a run from searches; what it logged stays."""
    logs.of(registry, body.run_id).write(Segment(tags={DELETED: "true"}))
    return {}


@router.post("/runs/restore")
def restore(body: RunId, registry: OperatorRegistry, logs: Logs) -> Json:
    """Restore a run that was deleted."""
    logs.of(registry, body.run_id).write(Segment(tags={DELETED: None}))
    return {}


@router.post("/runs/log-metric")
def log_metric(body: LogMetric, registry: OperatorRegistry, logs: Logs) -> Json:
    """Store one value of a metric."""
    _write_metrics(logs, registry, body.run_id, Segment(), [body])
    return {}


@router.post("/runs/log-parameter")
def log_parameter(body: RunKeyValue, registry: OperatorRegistry, logs: Logs) -> Json:
    """Store a parameter, whose value cannot change."""
    logs.of(registry, body.run_id).write(Segment(params={body.key: body.value}))
    return {}


@router.post("/runs/set-tag")
def set_tag(body: RunKeyValue, registry: OperatorRegistry, logs: Logs) -> Json:
    """Add or replace a tag of a run, also after the run has ended."""
    log = logs.of(registry, body.run_id)
    log.write(Segment(tags={wire.check_tag(body.key): body.value}))
    if body.key == _NAME:
        log.change(name=body.value)
    return {}


@router.post("/runs/delete-tag")
def delete_tag(body: RunKeyValue, registry: OperatorRegistry, logs: Logs) -> Json:
    """Remove a tag from a run."""
    logs.of(registry, body.run_id).write(Segment(tags={wire.check_tag(body.key): None}))
    return {}


@router.post("/runs/log-batch")
def log_batch(body: LogBatch, registry: OperatorRegistry, logs: Logs) -> Json:
    """Store many values in one write."""
    params: dict[str, str] = {}
    for param in body.params:
        if params.setdefault(param.key, param.value) != param.value:
            raise InvalidInput(
                f"param {param.key!r} is given twice, as {params[param.key]!r} and {param.value!r}"
            )
    segment = Segment(params=params, tags={**wire.pairs(body.tags)})
    _write_metrics(logs, registry, body.run_id, segment, body.metrics)
    return {}


@router.post("/runs/log-inputs")
def log_inputs(body: LogInputs, registry: OperatorRegistry, logs: Logs) -> Json:
    """Record which data sets a run reads."""
    _add_to_list(logs.of(registry, body.run_id), wire.INPUTS, body.datasets)
    return {}


@router.post("/runs/outputs")
def log_outputs(body: LogOutputs, registry: OperatorRegistry, logs: Logs) -> Json:
    """Record which models a run made."""
    _add_to_list(logs.of(registry, body.run_id), wire.OUTPUTS, body.models)
    return {}


@router.post("/runs/log-model")
def log_model(body: LogModel, registry: OperatorRegistry, logs: Logs) -> Json:
    """Record a model in the run's tag that clients of MLflow 2 read."""
    log, tag = logs.of(registry, body.run_id), "mlflow.log-model.history"
    try:
        model = json.loads(body.model_json)
    except ValueError as error:
        raise InvalidInput(f"model_json is not JSON: {error}") from error
    history = [*json.loads(log.record.tags.get(tag, "[]")), model]
    log.write(Segment(tags={tag: json.dumps(history)}))
    return {}


@router.post("/runs/search")
def search(body: RunSearch, registry: ViewerRegistry) -> Json:
    """Search for runs that match a filter."""
    names = [name for name in body.experiment_ids if name != LOGGED_MODELS]
    order = body.order_by or ["attributes.start_time DESC"]
    found = registry.search_runs(names, body.filter, order_by=order, limit=_ENDLESS, columns=runs_column)
    matching = [run for run in found if is_in_view(body.run_view_type, deleted=DELETED in run.tags)]
    runs, more = page(matching, size=body.max_results, token=body.page_token)
    return {"runs": [wire.run(run) for run in runs], **more}


@router.get("/metrics/get-history")
def history(
    registry: ViewerRegistry,
    metric_key: str,
    run_id: str = "",
    run_uuid: str = "",
    max_results: int = 25_000,
    page_token: str = "",
) -> Json:
    """List every value of a metric in the order of steps."""
    record = registry.get_record(run_id or run_uuid)
    points = {
        point for each in registry.segments(record.id) for name, point in each.points if name == metric_key
    }
    in_order = sorted(points, key=lambda point: (point.step, point.at))
    found, more = page(in_order, size=max_results, token=page_token)
    return {"metrics": [_metric_value(metric_key, point) for point in found], **more}


def logged_model_log(logs: RunLogs, registry: Registry, model_id: str) -> RunLog:
    """Get the log of a logged model, which is the run whose id follows `m-`. Raises: NotFound."""
    return logs.of(registry, logged_model_record(registry, model_id).id)


def logged_model_record(registry: Registry, model_id: str) -> RunRecord:
    """Get the record of a logged model. Raises: NotFound; InvalidInput if `model_id` is not an id of a logged model."""
    if not model_id.startswith("m-"):
        raise InvalidInput(f"model_id={model_id!r} is not the id of a logged model: those begin with 'm-'")
    record = registry.get_record(model_id.removeprefix("m-"))
    if record.experiment != LOGGED_MODELS:
        raise NotFound(f"logged model {model_id!r} does not exist: that is the id of a run")
    return record


def _write_metrics(
    logs: RunLogs,
    registry: Registry,
    run_id: str,
    segment: Segment,
    metrics: Sequence[MetricValue],
) -> None:
    """Store a segment with these metrics; values of a logged model are also stored with that model."""
    segment.points = [(metric.key, _point(metric, registry)) for metric in metrics]
    if segment:
        logs.of(registry, run_id).write(segment)
    for model_id in {metric.model_id for metric in metrics if metric.model_id}:
        points = [(m.key, _point(m, registry)) for m in metrics if m.model_id == model_id]
        logged_model_log(logs, registry, model_id).write(Segment(points=points))


def _point(metric: MetricValue, registry: Registry) -> Point:
    return Point(metric.step, metric.value, wire.from_ms(metric.timestamp) or registry.clock())


def _metric_value(key: str, point: Point) -> Json:
    return {
        "key": key,
        "value": wire.number(point.value),
        "timestamp": wire.to_ms(point.at),
        "step": point.step,
    }


def _add_to_list(log: RunLog, tag: str, items: Sequence[Json]) -> None:
    """Add items to the list that a reserved tag holds."""
    listed = wire.list_in_tag(log.record, tag)
    new = [item for item in items if item not in listed]
    if new:
        log.write(Segment(tags={tag: json.dumps([*listed, *new])}))


_ADJECTIVES: Final = (
    "able", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "crisp", "eager", "early", "fair", "fond",
    "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "honest", "keen", "kind", "lively", "loyal", "lucky", "merry",
    "mild", "neat", "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "rare", "ready", "sharp", "silent", "smooth",
    "sober", "steady", "sunny", "swift", "tidy", "warm", "wise", "witty",
)  # fmt: skip
_NOUNS: Final = (
    "badger", "bear", "bee", "bison", "crane", "crow", "deer", "dove", "duck", "eagle", "elk", "falcon", "finch", "fox", "frog",
    "goat", "goose", "hare", "hawk", "heron", "horse", "ibex", "jay", "kite", "lark", "lion", "lynx", "marten", "mole", "moose",
    "mouse", "newt", "otter", "owl", "pike", "quail", "raven", "robin", "seal", "shrew", "snail", "sole", "stork", "swan", "swift",
    "tern", "toad", "trout", "wolf", "wren",
)  # fmt: skip
_NUMBERS: Final = 1_000


def made_up_name() -> str:
    """Make a name such as `calm-heron-417`: one of 2.5 million."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.randbelow(_NUMBERS)}"
