"""What can go wrong when a model is judged."""

from __future__ import annotations


class EvaluationError(ValueError):
    """There is no honest number for what was asked: no rows, NaN, or one class only."""
