"""Errors of the prediction log."""

from __future__ import annotations

__all__ = ["LogFullError", "PredictionLogError"]


class PredictionLogError(Exception):
    """Base class of the errors of the prediction log."""


class LogFullError(PredictionLogError):
    """Raised where the write-ahead file has reached its bound, or its disk is full; nothing was written."""
