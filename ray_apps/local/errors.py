"""What can go wrong when the platform starts or stops here."""

# ruff: noqa: N818  # the names say what is the case

from __future__ import annotations


class LocalError(Exception):
    """Base of everything this package raises on its own account."""


class PortTaken(LocalError):
    """A port that had to be this one is held by another program; the message names both."""


class StartFailed(LocalError):
    """A part did not come up in time; the message says which and shows the end of its log."""


class NotRunning(LocalError):
    """Nothing is up in this state folder."""
