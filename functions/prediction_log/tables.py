"""Names of the tables that hold the log: one for the labels of all models, and two for each model's predictions."""

from __future__ import annotations

__all__ = ["LABELS_TABLE", "large_values_table", "predictions_table"]

LABELS_TABLE = "labels"


def predictions_table(model: str) -> str:
    """Return the name of the table that holds a model's predictions."""
    return f"predictions/{model}"


def large_values_table(model: str) -> str:
    """Return the name of the table that holds the large values which a model's predictions name by digest."""
    return f"predictions_large/{model}"
