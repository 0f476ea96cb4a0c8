"""Page of a model's report: plain values in, one self-contained HTML file out.

Weekly losses of what was served stand beside those of one version scored on the logged vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.metrics.probabilities import auc
from toque.functions.evaluation.outcome_kinds import BINARY, OutcomeKind
from toque.functions.evaluation.realised_loss import request_of, rescore
from toque.functions.monitoring import PerformanceEstimate
from toque.functions.reporting.html import document, figure_html, new_figure, table
from toque.functions.reporting.timeline import TimelineEvent
from toque.functions.reporting.trace import PredictionTrace
from toque.registry import ModelVersion

if TYPE_CHECKING:
    import plotly.graph_objects as go

Floats = npt.NDArray[np.float64]
FEW = 20  # labelled predictions below which a week gets no point: its loss would be noise
SERVED, REFERENCE = "#0b6e4f", "#b04a2f"
_UNITS = {"log loss": "log loss (nats)"}
SHOWN = {"alarm": "#c0392b", "champion": "#0b6e4f", "rollout": "#2f6db0", "retrain": "#8e5bb0"}
_REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time from a request's arrival to its answer in the replica, in ms, for one version."""

    version: int
    requests: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Content of a model's page.

    summary: sentences at the top; reference: the version that losses are compared with; loss: name of the loss; estimates: what
    was estimated before labels came.
    """

    model: str
    start: datetime
    end: datetime
    reference: int
    summary: Sequence[str]
    weeks: Sequence[Week]
    events: Sequence[TimelineEvent]
    latencies: Sequence[Latency]
    versions: Sequence[ModelVersion]
    trace: PredictionTrace | None
    loss: str = "log loss"
    estimates: Sequence[PerformanceEstimate] = ()


def render(found: ReportContent) -> str:
    """Render the whole page as HTML."""
    title = f"{found.model}, {found.start:%d %B %Y} to {found.end:%d %B %Y}"
    ranked = [("AUC by week", _by_week(found, "auc"))]
    sections = [
        (f"{found.loss.capitalize()} by week", _by_week(found, "loss")),
        *(ranked if not found.weeks or any(math.isfinite(week.served_auc) for week in found.weeks) else []),
        *([("Estimates before labels", _estimate_table(found.estimates))] if found.estimates else []),
        ("What happened", _event_table(found.events)),
        ("Latency in the replica", _latency_table(found.latencies)),
        ("Versions", _version_table(found.versions)),
        ("One prediction, back to its sources", _trace_table(found.trace)),
    ]
    return document(title, found.summary, sections)


def _by_week(found: ReportContent, measure: str) -> str:
    """Draw two lines, served and reference, over the decisions and alarms of the same weeks."""
    if not found.weeks:
        return "<p>No week has enough labelled predictions yet.</p>"
    at = [week.start for week in found.weeks]
    figure = new_figure()
    for name, prefix, colour in (
        ("what the platform served", "served", SERVED),
        (f"version {found.reference}, frozen", "reference", REFERENCE),
    ):
        values = [getattr(week, f"{prefix}_{measure}") for week in found.weeks]
        figure.add_scatter(x=at, y=values, name=name, mode="lines+markers", line={"color": colour})
    marked = [one for one in found.events if one.kind in SHOWN and at[0] <= one.at <= found.end]
    for event in marked:
        _mark(figure, event)
    for kind in sorted({one.kind for one in marked}):  # lines without points, for the legend
        dotted = {"color": SHOWN[kind], "dash": "dot"}
        figure.add_scatter(x=[None], y=[None], name=kind, mode="lines", line=dotted)
    return figure_html(figure, _UNITS.get(found.loss, found.loss) if measure == "loss" else "AUC")


def _mark(figure: go.Figure, event: TimelineEvent) -> None:
    """Draw a vertical line whose text is in the table below and on hover."""
    colour = SHOWN[event.kind]
    figure.add_shape(
        type="line", xref="x", yref="paper", x0=event.at, x1=event.at, y0=0, y1=1,
        line={"color": colour, "width": 1, "dash": "dot"},
    )  # fmt: skip
    figure.add_annotation(
        x=event.at, y=1, yref="paper", text="▾", showarrow=False,
        font={"color": colour, "size": 11}, hovertext=event.text, yanchor="bottom",
    )  # fmt: skip


def _event_table(events: Sequence[TimelineEvent]) -> str:
    rows = [[f"{one.at:%Y-%m-%d %H:%M}", one.kind, one.text, one.actor] for one in events]
    return table(["when (UTC)", "what", "", "by"], rows)


def _estimate_table(estimates: Sequence[PerformanceEstimate]) -> str:
    rows = [
        [
            f"{one.start:%Y-%m-%d}",
            one.measure,
            f"if {one.assumes}",
            one.rows,
            f"{one.estimate:.4g}",
            "" if one.low is None else f"{one.low:.4g} to {one.high:.4g}",
            "" if one.realised is None else f"{one.realised:.4g}{'' if one.agreed else ', contradicted'}",
        ]
        for one in estimates
    ]
    head = ["cohort from", "measure", "right", "rows", "estimate", "95 % interval", "realised"]
    return table(head, rows, numbers_from=3)


def _latency_table(latencies: Sequence[Latency]) -> str:
    rows = [
        [f"version {one.version}", one.requests, f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}"]
        for one in latencies
    ]
    return table(["", "predictions", "p50 ms", "p95 ms", "p99 ms"], rows, numbers_from=1)


def _version_table(versions: Sequence[ModelVersion]) -> str:
    rows = []
    for version in versions:
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in sorted(version.metrics.items()) if math.isfinite(v))
        gates = ", ".join(f"{g.name}: {'passed' if g.passed else 'failed'}" for g in version.gates.values())
        gate_texts = "; ".join(
            f"{a.actor} {'approved' if a.approved else 'rejected'}{' automatically' if a.automatic else ''}"
            + (f" ({a.comment})" if a.comment else "")
            for a in version.approvals
        )
        rows.append(
            [
                version.version,
                f"{version.created_at:%Y-%m-%d %H:%M}",
                version.author,
                metrics,
                gates,
                gate_texts,
            ]
        )
    return table(["version", "created (UTC)", "author", "metrics", "gates", "approvals"], rows)


def _trace_table(trace: PredictionTrace | None) -> str:
    if trace is None:
        return "<p>No labelled prediction yet.</p>"
    lineage = trace.lineage
    features = ", ".join(f"{k} = {_value(v)}" for k, v in trace.features.items())
    facts: Mapping[str, str] = {
        "prediction": f"{trace.prediction_id}, {trace.predicted_at:%Y-%m-%d %H:%M} UTC, arm {trace.arm}",
        "answer and label": f"{trace.outputs} and {'not yet known' if trace.label is None else trace.label}",
        "vector": features,
        "version": f"{trace.model}, version {trace.version}; approved by {'; '.join(trace.approved_by) or 'nobody'}",
        "run": f"{trace.run_name} ({lineage.run}, {trace.run_status})",
        "training data": ", ".join(f"{one.name} at table version {one.version}" for one in lineage.datasets),
        "feature views": ", ".join(f"{view} {digest[:19]}…" for view, digest in lineage.features.items()),
        "code": lineage.code or "not recorded",
    }
    return table(["", ""], [[name, value] for name, value in facts.items()])


def _value(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else value


@dataclass(frozen=True, slots=True)
class Week:
    """Week of labelled predictions with losses. losses and AUCs: of what was served, and of the reference version.

    An AUC is NaN where a week holds one class only, and for outcomes other than of two classes.
    """

    start: datetime
    labelled: int
    served_loss: float
    reference_loss: float
    served_auc: float
    reference_auc: float


def served(outcomes: pa.Table) -> pa.Table:
    """Select the labelled rows that a caller saw: without shadows, with an output.

    outcomes: of `toque.functions.prediction_log.reading.outcomes`.
    """
    answered = pc.greater(pc.list_value_length(outcomes["outputs"]), 0)
    seen = pc.and_(pc.invert(outcomes["shadow"]), pc.fill_null(answered, False))
    return outcomes.filter(pc.and_(seen, pc.is_valid(outcomes["label"])))


def by_request(rows: pa.Table, kind: OutcomeKind) -> tuple[pa.Table, OutcomeKind]:
    """Prepare served rows of a ranking, and its kind, to be judged by their requests; others are returned as they are."""
    if not kind.group:
        return rows, kind
    ids = [request_of(name) for name in rows["prediction_id"].to_pylist()]
    return rows.append_column(_REQUEST, pa.array(ids)), replace(kind, group=_REQUEST)


def answers(rows: pa.Table, kind: OutcomeKind) -> Any:
    """Extract what was answered, as the kind's losses take it: the first value of each row or unit, (rows, classes), or texts.

    Raises: ValueError if rows of one kind have answers of several sizes, as after a change of the classes.
    """
    if kind.datatype == "BYTES":
        return _texts(rows, "answer_text")
    if not kind.classes and kind.size == 1:
        values: Floats = pc.list_element(rows["outputs"], 0).to_numpy().astype(np.float64)
        return kind.by_unit(rows, values)
    sizes = pc.unique(pc.list_value_length(rows["outputs"])).to_pylist()
    if sizes != [len(kind.classes) or kind.size]:
        raise ValueError(
            f"answers hold {sizes} values a row, the version gives {len(kind.classes) or kind.size}"
        )
    return np.array(rows["outputs"].to_pylist(), dtype=np.float64)


def labels(rows: pa.Table, kind: OutcomeKind) -> Any:
    """Labels of served rows, as the kind's losses take them; those of classes are their indices.

    Raises: ValueError if a label is not one of such an outcome.
    """
    if kind.datatype == "BYTES":
        return _texts(rows, "label_text")
    found = kind.by_unit(rows, rows["label"].to_numpy())
    if kind.name in {"multilabel", "vector"}:
        missing = [np.nan] * (len(kind.classes) or kind.size)
        return np.array([each or missing for each in rows["truth"].to_pylist()])
    known = {"binary": [0.0, 1.0], "multiclass": range(len(kind.classes))}.get(kind.name)
    if known is not None and not np.isin(found, list(known)).all():
        strange = found[~np.isin(found, list(known))]
        raise ValueError(
            f"{len(strange)} of {len(found)} labels are none of {list(known)[:10]}, first {strange[0]:g}: send labels of this kind"
        )
    return found.astype(np.int64) if kind.name == "multiclass" else found


def _texts(rows: pa.Table, name: str) -> npt.NDArray[np.object_]:
    """Texts of a column that `outcomes` adds (rows,). Raises: ValueError if some are missing."""
    found = rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows
    missing = sum(each is None for each in found)
    if missing:
        raise ValueError(
            f"{missing} of {len(found)} labelled rows have no {name}: send labels that are texts"
        )
    return np.array([*found, None], dtype=object)[:-1]


def mean_loss(kind: OutcomeKind, label: Any, own: Any) -> float:
    """Mean loss of answers, by the kind's loss."""
    return float(np.mean(kind.row_loss(label, own)))


def weeks(rows: pa.Table, reference: Any, kind: OutcomeKind = BINARY) -> list[Week]:
    """Compute the losses of weeks (from Monday, UTC) of served rows, oldest first; weeks with fewer than 20 labels are left out.

    rows: of `served`; reference: answers of the reference version; kind: of outcome. Raises: ValueError as `labels`.
    """
    label, own = labels(rows, kind), answers(rows, kind)
    days = (
        kind.unit_rows(rows)["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        // 86_400_000_000
    )
    monday = (days + 3) // 7 * 7 - 3  # 1970-01-01 was a Thursday
    found = []
    for start in np.unique(monday):
        week = monday == start
        if week.sum() < FEW:
            continue
        found.append(
            Week(
                start=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=int(start)),
                labelled=int(week.sum()),
                served_loss=mean_loss(kind, label[week], own[week]),
                reference_loss=mean_loss(kind, label[week], reference[week]),
                served_auc=auc_of(kind, label[week], own[week]),
                reference_auc=auc_of(kind, label[week], reference[week]),
            )
        )
    return found


def auc_of(kind: OutcomeKind, label: Any, probability: Any) -> float:
    """Area under the curve of probabilities of two classes; NaN for another outcome, or labels of one class."""
    measurable = kind is BINARY and 0 < label.sum() < len(label)
    return auc(label, probability) if measurable else float("nan")


__all__ = [
    "REFERENCE",
    "SERVED",
    "SHOWN",
    "Latency",
    "ReportContent",
    "Week",
    "answers",
    "auc_of",
    "by_request",
    "labels",
    "mean_loss",
    "render",
    "rescore",
    "served",
    "weeks",
]
