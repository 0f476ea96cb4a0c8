"""Errors that maintenance functions raise."""

from __future__ import annotations


class MaintenanceError(Exception):
    """Raised where maintenance cannot be done as asked; the message says what to do instead."""
