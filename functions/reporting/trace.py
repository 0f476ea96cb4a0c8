"""Trace of a prediction back to everything that made it."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.functions.prediction_log import latest_labels, predictions_table
from toque.registry import Lineage, Registry, Table


class PredictionTrace(BaseModel):
    """Served prediction and its origin.

    features: the vector that was used, by column name; None is missing. label: None until it is known.
    lineage: run, training-set snapshots, digests of the feature views and of the code.
    """

    model_config = ConfigDict(frozen=True)

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
