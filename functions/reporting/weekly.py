"""Weekly losses of what was served, beside one version scored on the logged vectors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from functions.evaluation.metrics.probabilities import auc, log_loss
from functions.evaluation.realised_loss import rescore

__all__ = ["Week", "first_outputs", "rescore", "served", "weeks"]

Floats = npt.NDArray[np.float64]
FEW = 20  # labelled predictions below which a week gets no point: its loss would be noise


@dataclass(frozen=True, slots=True)
class Week:
    """Week of labelled predictions with losses. losses and AUCs: of what was served, and of the reference version.

    An AUC is NaN where a week holds one class only.
    """

    start: datetime
    labelled: int
    served_loss: float
    reference_loss: float
    served_auc: float
    reference_auc: float


def served(outcomes: pa.Table) -> pa.Table:
    """Select the labelled rows that a caller saw: without shadows, with an output.

    outcomes: of `functions.prediction_log.reading.outcomes`.
    """
    answered = pc.greater(pc.list_value_length(outcomes["outputs"]), 0)
    seen = pc.and_(pc.invert(outcomes["shadow"]), pc.fill_null(answered, False))
    return outcomes.filter(pc.and_(seen, pc.is_valid(outcomes["label"])))


def first_outputs(rows: pa.Table) -> Floats:
    """Extract the first output of each row."""
    values: Floats = pc.list_element(rows["outputs"], 0).to_numpy().astype(np.float64)
    return values


def weeks(rows: pa.Table, reference: Floats) -> list[Week]:
    """Compute the losses of weeks (from Monday, UTC) of served rows, oldest first; weeks with fewer than 20 labels are left out.

    rows: of `served`; reference: (rows,) probabilities of the reference version.
    """
    label = rows["label"].to_numpy()
    own = first_outputs(rows)
    days = rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy() // 86_400_000_000
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
                served_loss=log_loss(label[week], own[week]),
                reference_loss=log_loss(label[week], reference[week]),
                served_auc=_auc(label[week], own[week]),
                reference_auc=_auc(label[week], reference[week]),
            )
        )
    return found


def _auc(label: Floats, probability: Floats) -> float:
    return auc(label, probability) if 0 < label.sum() < len(label) else float("nan")
