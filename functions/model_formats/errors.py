"""Errors of reading, scoring and training models, one class for each thing a caller would do about them."""

from __future__ import annotations


class TrainingError(ValueError):
    """Base of the errors of training, scoring and evaluation."""


class TrainingDataError(TrainingError, ValueError):
    """The data or its description cannot be learnt from: nothing was trained."""


class ArtifactRefused(TrainingError, ValueError):  # noqa: N818 - says what happened
    """A model file holds something that a model has no need of, or does not match its description."""
