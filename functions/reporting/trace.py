"""Trace of a prediction back to everything that made it, and of a request to what became of it.

A request is found by the id of its prediction or its trace. Everything is read from the prediction log, the tables of monitors and the
journals of rollouts; a collector of spans is not asked, and need not be there. Inputs, units and entities are left out: who may see
those reads the log itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel

from toque.functions.monitoring.results import RESULTS, results_table
from toque.functions.prediction_log import find_labels, latest_labels, predictions_table
from toque.functions.prediction_log.records import TRACED_PREDICTIONS
from toque.registry import Journal, Lineage, NotFound, ObjectStore, Registry, Table

LOOK_BACK = timedelta(days=7)
MAX_ROWS, MAX_VERDICTS = 100, 100
_COLUMNS = (
    "prediction_id", "model", "version", "arm", "shadow", "predicted_at", "latency_ms", "outputs", "trace_id", "stages",
)  # fmt: skip


class PredictionTrace(BaseModel, frozen=True):
    """Served prediction and its origin.

    features: the vector that was used, by column name; None is missing. label: None until it is known.
    lineage: run, training-set snapshots, digests of the feature views and of the code.
    """

    prediction_id: str
    model: str
    version: int
    arm: str
    predicted_at: datetime
    outputs: list[float]
    features: dict[str, float | str | None]
    entities: dict[str, Any] | None
    label: float | None
    lineage: Lineage
    run_name: str | None
    run_status: str | None
    approved_by: list[str]


def trace_prediction(registry: Registry, model: str, prediction_id: str) -> PredictionTrace:
    """Follow a served prediction to its version, run, training set, feature definitions and code.

    Raises: LookupError if the id is not in the log of `model` (not drained yet, or never answered).
    """
    table = Table(registry.store, predictions_table(model))
    where: Any = (pc.field("prediction_id") == prediction_id) & ~pc.field("shadow")
    rows = table.read(where=where).to_pylist() if table.exists() else []
    if not rows:
        raise LookupError(
            f"prediction {prediction_id!r} is not in the log of {model!r}; "
            "drain the log first, or check the id and the model"
        )
    row = rows[0]
    version = registry.get_version(model, row["version"])
    run = registry.get_run(version.lineage.run).record() if version.lineage.run else None
    columns = (
        {spec.name: spec.columns or [] for spec in version.signature.inputs} if version.signature else {}
    )
    labels = latest_labels(registry.store)
    label = labels.filter(pc.equal(labels["prediction_id"], prediction_id))["label"].to_pylist()
    return PredictionTrace(
        prediction_id=prediction_id,
        model=model,
        version=row["version"],
        arm=row["arm"],
        predicted_at=row["predicted_at"],
        outputs=row["outputs"] or [],
        features=_named(columns.get("numeric", []), row["numeric"])
        | _named(columns.get("categorical", []), row["categorical"]),
        entities=json.loads(row["entities"]) if row["entities"] else None,
        label=label[0] if label else None,
        lineage=version.lineage,
        run_name=run.name if run else None,
        run_status=run.status if run else None,
        approved_by=[
            f"{approval.actor}: {approval.comment}" if approval.comment else approval.actor
            for approval in version.approvals
            if approval.approved
        ],
    )


def _named(columns: list[str], values: list[Any] | None) -> dict[str, Any]:
    """Values under their column names; NaN and empty text are missing."""
    return {
        name: None if _missing(value) else value for name, value in zip(columns, values or [], strict=False)
    }


def _missing(value: float | str | None) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


class Stage(BaseModel, frozen=True):
    """Part of a request's time. begin_ms: after the request came in."""

    name: str
    begin_ms: float
    duration_ms: float


class Verdict(BaseModel, frozen=True):
    """Judgement of a monitor or a rollout in whose window a prediction lies.

    subject: what a monitor judged, or the rule that decided on a rollout. start, end: of the window.
    """

    by: Literal["monitor", "rollout"]
    name: str
    subject: str
    verdict: str
    text: str
    start: AwareDatetime
    end: AwareDatetime
    judged_at: AwareDatetime


class TracedPrediction(BaseModel, frozen=True):
    """Row of the prediction log with what is known of it. kept, span_id, stages: of a request whose stages were kept."""

    prediction_id: str
    model: str
    version: int
    arm: str
    shadow: bool
    predicted_at: AwareDatetime
    latency_ms: float | None
    outputs: list[float] | None
    trace_id: str | None = None
    kept: str | None = None
    span_id: str | None = None
    stages: list[Stage] = []
    label: float | None = None
    observed_at: AwareDatetime | None = None
    verdicts: list[Verdict] = []


class RequestFound(BaseModel, frozen=True):
    """Rows that belong to an id: several, if a request had several rows, shadows, or a trace several requests."""

    id: str
    predictions: list[TracedPrediction]


def find_request(
    store: ObjectStore, models: Sequence[str], wanted: str, *, since: datetime, until: datetime
) -> RequestFound:
    """Find the predictions of an id among those of `models` that were made from `since` to `until`.

    wanted: id of a prediction, of a request of several rows, or of a trace. At most 100 rows, the oldest first.
    Raises: NotFound if there is none.
    """
    rows = [row for model in models for row in _rows(store, model, wanted, since, until)]
    rows = sorted(rows, key=lambda row: (row["predicted_at"], row["shadow"], row["prediction_id"]))[:MAX_ROWS]
    if not rows:
        raise NotFound(
            f"no prediction or trace {wanted!r} of {', '.join(models) or 'any model'} from {since:%Y-%m-%d %H:%M} on: rows "
            "arrive some ten seconds after their answer; check the id, or look back further"
        )
    ids = sorted({row["prediction_id"] for row in rows})
    found = find_labels(store, ids, since=rows[0]["predicted_at"]).to_pylist()
    labels = {row["prediction_id"]: row for row in found}
    return RequestFound(id=wanted, predictions=[_prediction(store, row, labels) for row in rows])


def _rows(
    store: ObjectStore, model: str, wanted: str, since: datetime, until: datetime
) -> list[dict[str, Any]]:
    table = Table(store, predictions_table(model))
    if not table.exists():
        return []
    dataset = table.dataset()
    there = [name for name in _COLUMNS if name in dataset.schema.names]
    name = pc.field("prediction_id")
    matches = (name == wanted) | pc.starts_with(name, f"{wanted}:")
    if "trace_id" in there:
        matches = matches | (pc.field("trace_id") == wanted)
    moment = pa.timestamp("us", tz="UTC")
    within = (pc.field("day") >= f"{since:%Y-%m-%d}") & (pc.field("day") <= f"{until:%Y-%m-%d}")
    within = within & (pc.field("predicted_at") >= pa.scalar(since, moment))
    found = dataset.to_table(columns=there, filter=within & matches)
    missing = {
        each: pa.nulls(len(found), TRACED_PREDICTIONS.field(each).type) for each in _COLUMNS[len(there) :]
    }
    for each, nulls in missing.items():
        found = found.append_column(each, nulls)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _prediction(store: ObjectStore, row: dict[str, Any], labels: dict[str, Any]) -> TracedPrediction:
    label = labels.get(row["prediction_id"], {})
    kept: dict[str, Any] = json.loads(row["stages"]) if row["stages"] else {}
    fields = {name: value for name, value in row.items() if name != "stages"}
    return TracedPrediction(
        **fields,
        kept=kept.get("kept"),
        span_id=kept.get("span"),
        stages=list(_stages(kept.get("stages_us", ()))),
        label=label.get("label"),
        observed_at=label.get("observed_at"),
        verdicts=[*_findings(store, row), *_decisions(store, row)][:MAX_VERDICTS],
    )


def _stages(ends: Sequence[tuple[str, float]]) -> Iterator[Stage]:
    """Make the stages from their ends in microseconds: each begins where the one before ended."""
    begin = 0.0
    for name, end in ends:
        yield Stage(name=name, begin_ms=begin / 1e3, duration_ms=(end - begin) / 1e3)
        begin = end


def _findings(store: ObjectStore, row: dict[str, Any]) -> Iterator[Verdict]:
    """Findings of monitors on the row's version, in whose cohort or window the row lies."""
    table = Table(store, results_table(row["model"]))
    if row["shadow"] or not table.exists():
        return
    at = pa.scalar(row["predicted_at"], pa.timestamp("us", tz="UTC"))
    where = (pc.field("version") == row["version"]) & (pc.field("start") <= at) & (pc.field("end") > at)
    names = [
        name
        for name in RESULTS.names
        if name in {"monitor", "subject", "start", "end", "verdict", "text", "judged_at"}
    ]
    for found in table.read(columns=names, where=where).to_pylist():
        yield Verdict(by="monitor", name=found.pop("monitor"), **(found | {"text": found["text"] or ""}))


def _decisions(store: ObjectStore, row: dict[str, Any]) -> Iterator[Verdict]:
    """Decisions on rollouts that compared the row's version, made after the row and on rows from before it on."""
    start: datetime | None = None
    compared: set[int] = set()
    for entry in Journal(store, f"rollouts/{row['model']}", actor="trace").entries():
        body = entry.body
        at = datetime.fromisoformat(body["at"])
        if body["event"] == "started":
            start, compared = at, {body["champion"], body["challenger"], *body.get("rivals", ())}
        elif body["event"] == "decided" and start is not None and row["version"] in compared:
            if not start <= row["predicted_at"] <= at:
                continue
            decision = body["decision"]
            texts = [each["text"] for each in decision["findings"] if each["rule"] == decision["rule"]]
            yield Verdict(
                by="rollout",
                name=body["stage"],
                subject=decision["rule"],
                verdict=decision["action"],
                text=texts[0] if texts else "",
                start=start,
                end=at,
                judged_at=at,
            )
