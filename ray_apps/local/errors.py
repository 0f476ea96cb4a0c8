"""Errors of starting and stopping the platform on this machine."""

# ruff: noqa: N818  # the names state the condition

from __future__ import annotations


class LocalError(Exception):
    """Base class of the errors that this package raises itself."""


class PortTaken(LocalError):
    """A port that may not be replaced is held by another program; the message names both."""


class StartFailed(LocalError):
    """A part of the platform did not start in time; the message names it and shows the end of its log."""


class NotRunning(LocalError):
    """No platform is running in this state folder."""
