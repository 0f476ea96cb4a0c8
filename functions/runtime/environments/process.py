"""Environment that is in force in this process, as the executor that started it has marked it."""

from __future__ import annotations

import os

from toque.functions.runtime.environments.environment import Environment

MARKER = "TOQUE_RUN_ENVIRONMENT"
"""Variable that holds the environment of a run's processes, as JSON."""


def in_force() -> Environment | None:
    """Environment that this process was started with; None if it has the platform's own packages alone."""
    text = os.environ.get(MARKER)
    return Environment.model_validate_json(text) if text else None
