"""Errors of training, beside those of model files and their data."""

from __future__ import annotations

from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError, TrainingError

__all__ = ["ArtifactRefused", "TrainingDataError", "TrainingDiverged", "TrainingError"]


class TrainingDiverged(TrainingError, ArithmeticError):  # noqa: N818 - says what happened
    """A loss or weight stopped being a number: training stopped, nothing was registered."""
