"""What can go wrong in the kitchen, as far as a caller would act on it."""

from __future__ import annotations


class TrainingError(ValueError):
    """Base of the errors of training, scoring and evaluation."""


class TrainingDataError(TrainingError, ValueError):
    """The data or its description cannot be learnt from: nothing was trained."""


class TrainingDiverged(TrainingError, ArithmeticError):  # noqa: N818 - says what happened
    """A loss or weight stopped being a number: training stopped, nothing was registered."""


class ArtifactRefused(TrainingError, ValueError):  # noqa: N818 - says what happened
    """A model file holds something that a model has no need of, or does not match its description."""
