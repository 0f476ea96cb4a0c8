"""Runs by MLflow's protocol: each call is stored before it is answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter
from pydantic import Field, model_validator

from ray_apps.mlflow import wire
from ray_apps.mlflow.experiments import LOGGED_MODELS, in_view, usable
from ray_apps.mlflow.search import page
from ray_apps.mlflow.services import AtDesk, Desk, Reader, Writer
from ray_apps.mlflow.wire import Body, Json, Tag
from registry import InvalidInput, NotFound, Point, Registry, RunLog, RunRecord, Segment

router = APIRouter(prefix="/2.0/mlflow")

_NAME, _PARENT = "mlflow.runName", "mlflow.parentRunId"
_ENDLESS = 1 << 62


class Which(Body):
    """A run. Old clients say run_uuid."""

    run_id: str = ""
    run_uuid: str = ""

    @model_validator(mode="after")
    def _named(self) -> Which:
        self.run_id = self.run_id or self.run_uuid
        if not self.run_id:
            raise ValueError("run_id is missing")
        return self


class Create(Body):
    """A new run."""

    experiment_id: str = wire.DEFAULT_ID
    run_name: str = ""
    start_time: int | None = None
    tags: Sequence[Tag] = ()


class Update(Which):
    """A change of a run's state."""

    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"] | None = None
    end_time: int | None = None
    run_name: str | None = None


class Metric(Body):
    """A value of a metric."""

    key: str = Field(min_length=1)
    value: float
    timestamp: int = 0
    step: int = 0
    model_id: str = ""


class LogMetric(Which, Metric):
    """A value of one run's metric."""


class LogPair(Which, Tag):
    """A parameter or a tag of one run."""


class LogBatch(Which):
    """Metrics, parameters and tags of one run."""

    metrics: Sequence[Metric] = ()
    params: Sequence[Tag] = ()
    tags: Sequence[Tag] = ()


class LogInputs(Which):
    """Data sets that a run reads, as the client describes them."""

    datasets: Sequence[Json] = ()


class LogOutputs(Which):
    """Models that a run made."""

    models: Sequence[Json] = ()


class LogModel(Which):
    """A model's description, from clients of MLflow 2."""

    model_json: str


class Search(Body):
    """A search over the runs of experiments."""

    experiment_ids: Sequence[str] = ()
    filter: str = ""
    run_view_type: str = "ACTIVE_ONLY"
    max_results: int = 1000
    order_by: Sequence[str] = ()
    page_token: str = ""


@router.post("/runs/create")
def create(body: Create, registry: Writer) -> Json:
    """Begin a run."""
    tags = wire.pairs(body.tags)
    name = body.run_name or tags.get(_NAME, "")
    log = RunLog.begin(
        registry,
        usable(registry, body.experiment_id),
        name=name,
        tags=tags | ({_NAME: name} if name else {}),
        started_at=wire.from_ms(body.start_time),
        parent=tags.get(_PARENT),
    )
    return {"run": wire.run(log.record)}


@router.get("/runs/get")
def get(registry: Reader, run_id: str = "", run_uuid: str = "") -> Json:
    """One run with what it logged."""
    return {"run": wire.run(registry.get_record(run_id or run_uuid))}


@router.post("/runs/update")
def update(body: Update, registry: Writer, desk: AtDesk) -> Json:
    """End a run, let it go on, or rename it."""
    log = desk.log(registry, body.run_id)
    if body.run_name:
        log.write(Segment(tags={_NAME: body.run_name}))
    status = "RUNNING" if body.status == "SCHEDULED" else body.status
    record = log.change(status=status, name=body.run_name or None, ended_at=wire.from_ms(body.end_time))
    return {"run_info": wire.run_info(record)}


@router.post("/runs/delete")
def delete(body: Which, registry: Writer, desk: AtDesk) -> Json:
    """Hide a run from searches; what it logged stays."""
    desk.log(registry, body.run_id).write(Segment(tags={wire.DELETED: "true"}))
    return {}


@router.post("/runs/restore")
def restore(body: Which, registry: Writer, desk: AtDesk) -> Json:
    """Show a run again."""
    desk.log(registry, body.run_id).write(Segment(tags={wire.DELETED: None}))
    return {}


@router.post("/runs/log-metric")
def log_metric(body: LogMetric, registry: Writer, desk: AtDesk) -> Json:
    """Store one value of a metric."""
    _write(desk, registry, body.run_id, Segment(), [body])
    return {}


@router.post("/runs/log-parameter")
def log_parameter(body: LogPair, registry: Writer, desk: AtDesk) -> Json:
    """Store a parameter, which has one value."""
    desk.log(registry, body.run_id).write(Segment(params={body.key: body.value}))
    return {}


@router.post("/runs/set-tag")
def set_tag(body: LogPair, registry: Writer, desk: AtDesk) -> Json:
    """Add or replace a tag; it may be set when the run has ended."""
    log = desk.log(registry, body.run_id)
    log.write(Segment(tags={wire.check_tag(body.key): body.value}))
    if body.key == _NAME:
        log.change(name=body.value)
    return {}


@router.post("/runs/delete-tag")
def delete_tag(body: LogPair, registry: Writer, desk: AtDesk) -> Json:
    """Take a tag away."""
    desk.log(registry, body.run_id).write(Segment(tags={wire.check_tag(body.key): None}))
    return {}


@router.post("/runs/log-batch")
def log_batch(body: LogBatch, registry: Writer, desk: AtDesk) -> Json:
    """Store many values in one write."""
    params: dict[str, str] = {}
    for param in body.params:
        if params.setdefault(param.key, param.value) != param.value:
            raise InvalidInput(
                f"param {param.key!r} is given twice, as {params[param.key]!r} and {param.value!r}"
            )
    segment = Segment(params=params, tags={**wire.pairs(body.tags)})
    _write(desk, registry, body.run_id, segment, body.metrics)
    return {}


@router.post("/runs/log-inputs")
def log_inputs(body: LogInputs, registry: Writer, desk: AtDesk) -> Json:
    """Note which data a run reads."""
    _note(desk.log(registry, body.run_id), wire.INPUTS, body.datasets)
    return {}


@router.post("/runs/outputs")
def log_outputs(body: LogOutputs, registry: Writer, desk: AtDesk) -> Json:
    """Note which models a run made."""
    _note(desk.log(registry, body.run_id), wire.OUTPUTS, body.models)
    return {}


@router.post("/runs/log-model")
def log_model(body: LogModel, registry: Writer, desk: AtDesk) -> Json:
    """Note a model in the run's tag, where clients of MLflow 2 look for it."""
    log, tag = desk.log(registry, body.run_id), "mlflow.log-model.history"
    try:
        model = json.loads(body.model_json)
    except ValueError as error:
        raise InvalidInput(f"model_json is not JSON: {error}") from error
    history = [*json.loads(log.record.tags.get(tag, "[]")), model]
    log.write(Segment(tags={tag: json.dumps(history)}))
    return {}


@router.post("/runs/search")
def search(body: Search, registry: Reader) -> Json:
    """Runs that a filter holds for."""
    names = [name for name in body.experiment_ids if name != LOGGED_MODELS]
    order = body.order_by or ["attributes.start_time DESC"]
    found = registry.search_runs(names, body.filter, order_by=order, limit=_ENDLESS)
    seen = [run for run in found if in_view(body.run_view_type, deleted=wire.DELETED in run.tags)]
    runs, more = page(seen, size=body.max_results, token=body.page_token)
    return {"runs": [wire.run(run) for run in runs], **more}


@router.get("/metrics/get-history")
def history(
    registry: Reader,
    metric_key: str,
    run_id: str = "",
    run_uuid: str = "",
    max_results: int = 25_000,
    page_token: str = "",
) -> Json:
    """Every value of a metric, in the order of steps."""
    record = registry.get_record(run_id or run_uuid)
    points = {
        point for each in registry.segments(record.id) for name, point in each.points if name == metric_key
    }
    in_order = sorted(points, key=lambda point: (point.step, point.at))
    found, more = page(in_order, size=max_results, token=page_token)
    return {"metrics": [_value(metric_key, point) for point in found], **more}


def log_of_model(desk: Desk, registry: Registry, model_id: str) -> RunLog:
    """The log of a logged model: a run of its own, `m-` before its id. Raises: NotFound."""
    return desk.log(registry, logged_model(registry, model_id).id)


def logged_model(registry: Registry, model_id: str) -> RunRecord:
    """A logged model. Raises: NotFound; InvalidInput for what is no id of one."""
    if not model_id.startswith("m-"):
        raise InvalidInput(f"model_id={model_id!r} is not one: they begin with 'm-'")
    record = registry.get_record(model_id.removeprefix("m-"))
    if record.experiment != LOGGED_MODELS:
        raise NotFound(f"logged model {model_id!r} does not exist: that is the id of a run")
    return record


def _write(desk: Desk, registry: Registry, run_id: str, segment: Segment, metrics: Sequence[Metric]) -> None:
    """Store a segment with these metrics; those of a logged model are told of it too."""
    segment.points = [(metric.key, _point(metric, registry)) for metric in metrics]
    if segment:
        desk.log(registry, run_id).write(segment)
    for model_id in {metric.model_id for metric in metrics if metric.model_id}:
        told = [(m.key, _point(m, registry)) for m in metrics if m.model_id == model_id]
        log_of_model(desk, registry, model_id).write(Segment(points=told))


def _point(metric: Metric, registry: Registry) -> Point:
    return Point(metric.step, metric.value, wire.from_ms(metric.timestamp) or registry.clock())


def _value(key: str, point: Point) -> Json:
    return {
        "key": key,
        "value": wire.number(point.value),
        "timestamp": wire.to_ms(point.at),
        "step": point.step,
    }


def _note(log: RunLog, tag: str, items: Sequence[Json]) -> None:
    """Add items to the list in a reserved tag."""
    noted = wire.noted(log.record, tag)
    new = [item for item in items if item not in noted]
    if new:
        log.write(Segment(tags={tag: json.dumps([*noted, *new])}))
