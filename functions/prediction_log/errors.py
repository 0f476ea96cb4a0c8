"""Errors of the prediction log."""

from __future__ import annotations

__all__ = ["LogFullError", "LogUnconfirmedError", "PredictionLogError"]


class PredictionLogError(Exception):
    """Base class of the errors of the prediction log."""


class LogFullError(PredictionLogError):
    """Raised where the write-ahead file has reached its bound, or its disk is full; nothing was written."""


class LogUnconfirmedError(PredictionLogError):
    """Raised where a record is not known to be where it must be before it is acknowledged; send it again."""
