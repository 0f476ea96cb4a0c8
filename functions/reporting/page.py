"""Pages of reports: plain values in, one self-contained HTML file out, with the console's style sheet and charts; and a model's.

Weekly losses of what was served stand beside those of one version scored on the logged vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from toque.functions.evaluation.metrics.probabilities import auc
from toque.functions.evaluation.outcome_kinds import BINARY, OutcomeKind
from toque.functions.evaluation.realised_loss import request_of
from toque.functions.monitoring import PerformanceEstimate
from toque.functions.pages import Mark, Point, Series, make_templates
from toque.functions.pages.charts import draw_lines
from toque.functions.reporting.timeline import TimelineEvent
from toque.functions.reporting.trace import PredictionTrace
from toque.registry import ModelVersion, ObjectStore

Floats = npt.NDArray[np.float64]
FEW = 20  # labelled predictions below which a week gets no point: its loss would be noise
SHOWN = frozenset({"alarm", "champion", "rollout", "retrain"})
"""Kinds of events that charts mark, each with a colour of the style sheet."""
_REQUEST = "request"
_TEMPLATES: Final = make_templates(Path(__file__).with_name("templates"))


def render(template: str, **values: Any) -> str:
    """Render a report by its template as one HTML file.

    values: what the template names; `link`, to the console's page of the same, may be left out.
    """
    return _TEMPLATES.get_template(template).render({"link": None, **values})


def write_page(store: ObjectStore, key: str, page: str) -> None:
    """Store a report under its key, and announce it to whoever looks at the list of reports."""
    store.put(key, page.encode())
    store.announce(key)


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time from a request's arrival to its answer in the replica, in ms, for one version."""

    version: int
    requests: int
    p50: float
    p95: float
    p99: float


def render_model(
    *,
    model: str,
    start: datetime,
    end: datetime,
    reference: int,
    summary: Sequence[str],
    weeks: Sequence[Week],
    events: Sequence[TimelineEvent],
    latencies: Sequence[Latency] = (),
    versions: Sequence[ModelVersion] = (),
    trace: PredictionTrace | None = None,
    loss: str = "log loss",
    estimates: Sequence[PerformanceEstimate] = (),
    link: str | None = None,
) -> str:
    """Render the report of a model as one HTML file.

    summary: sentences at the top; reference: the version that losses are compared with; loss: its name; estimates: of what labels
    had not told; link: to the console's page of the model.
    """
    marks = [
        Mark(event.at, "▾", event.kind, event.text)
        for event in events
        if event.kind in SHOWN and weeks and weeks[0].start <= event.at <= end
    ]

    def chart(measure: str, label: str) -> Markup:
        names = {"served": "what the platform served", "reference": f"version {reference}, frozen"}
        series = [
            Series(name, [
                Point(week.start, value, note=f"{value:.4f} on {week.labelled:,} labels")
                for week in weeks
                if math.isfinite(value := getattr(week, f"{side}_{measure}"))
            ])
            for side, name in names.items()
        ]  # fmt: skip
        return draw_lines(series, label=label, marks=marks)

    charts = [
        (
            f"{loss.capitalize()} by week{', in nats' if loss == 'log loss' else ''}",
            chart("loss", f"{loss} by week"),
        )
    ]
    ranked = chart("auc", "AUC by week")
    return render(
        "model.html",
        model=model,
        start=start,
        end=end,
        summary=summary,
        charts=charts + ([("AUC by week", ranked)] if ranked or not weeks else []),
        events=events,
        latencies=latencies,
        versions=versions,
        trace=trace,
        estimates=estimates,
        link=link,
    )


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
