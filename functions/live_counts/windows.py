"""Windows of time in which requests are counted, and where in Redis they lie."""

from __future__ import annotations

WINDOW_S = 60
KEPT_S = 2 * 3600  # of a window, after its last count
_PREFIX = "toque:live:"


def window_at(seconds: float) -> int:
    """Return the index of the window that holds a moment, given in seconds since the epoch."""
    return int(seconds // WINDOW_S)


def counts_key(workspace: str, model: str, window: int) -> str:
    """Return the key of a hash with one field for each process: its tally of one model in one window."""
    return f"{_PREFIX}{{{workspace}/{model}}}:{window}"


def models_key(workspace: str) -> str:
    """Return the key of the sorted set of a workspace's models, by the time of their last count."""
    return f"{_PREFIX}models:{workspace}"
