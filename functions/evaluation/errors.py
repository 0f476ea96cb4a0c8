"""Errors of judging a model."""

from __future__ import annotations


class EvaluationError(ValueError):
    """A metric has no value for the given rows: no rows, NaN, or one class only."""
