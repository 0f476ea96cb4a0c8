"""Names of the tables that hold the log: one for the labels of all models, and one for each model's predictions."""

from __future__ import annotations

__all__ = ["LABELS_TABLE", "predictions_table"]

LABELS_TABLE = "labels"


def predictions_table(model: str) -> str:
    """Return the name of the table that holds a model's predictions."""
    return f"predictions/{model}"
