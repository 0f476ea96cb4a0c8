"""What can go wrong with the prediction log."""

from __future__ import annotations

__all__ = ["LogFullError", "PredictionLogError"]


class PredictionLogError(Exception):
    """Base of the errors of this package."""


class LogFullError(PredictionLogError):
    """The write-ahead file has reached its bound, or its disk is full; nothing was written."""
