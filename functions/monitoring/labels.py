"""Labels that came in and belong to no logged prediction: a typing error in an ID, or a prediction that is not in the log yet."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.prediction_log import LABELS_TABLE, predictions
from toque.registry import ObjectStore, Table

_EXAMPLES = 5


class UnknownLabels(BaseModel):
    """Labels received since a time, and those of IDs that no logged prediction of the last days has. examples: of such IDs."""

    model_config = ConfigDict(frozen=True)

    since: AwareDatetime
    labels: int
    unknown: int
    examples: tuple[str, ...] = ()


def find_unknown(
    store: ObjectStore, models: Iterable[str], now: datetime, *, hours: float, days: int
) -> UnknownLabels:
    """Look up the labels received in the last hours among the predictions of the last days."""
    since = now - timedelta(hours=hours)
    table = Table(store, LABELS_TABLE)
    if not table.exists():
        return UnknownLabels(since=since, labels=0, unknown=0)
    where = (pc.field("day") >= f"{since:%Y-%m-%d}") & (pc.field("received_at") >= pa.scalar(since))
    received = table.read(columns=["prediction_id"], where=where)["prediction_id"]
    left = pc.unique(received)
    for model in models:
        if not len(left):
            break
        logged = predictions(store, model, now - timedelta(days=days), now, columns=("prediction_id",))
        left = left.filter(pc.invert(pc.is_in(left, logged["prediction_id"].combine_chunks())))
    unknown = int(pc.sum(pc.is_in(received, left)).as_py() or 0)
    return UnknownLabels(
        since=since, labels=len(received), unknown=unknown, examples=tuple(left[:_EXAMPLES].to_pylist())
    )
