"""Modes of the prediction log: where a record is before its answer leaves."""

from __future__ import annotations

from typing import Literal, cast, get_args

__all__ = ["LOG_MODE", "LogMode", "log_mode_of"]

LogMode = Literal["file", "redis", "two_nodes"]
"""Where a record is before its answer leaves.

file: in a file on the node. redis: in Redis too; without Redis in that file alone, which is counted. two_nodes: in that file
and, confirmed, on another node; otherwise the request is refused.
"""
LOG_MODE = "TOQUE_LOG_MODE"
"""Environment variable that names the mode."""


def log_mode_of(name: str) -> LogMode:
    """Check the name of a mode; an empty one is `file`.

    Raises: ValueError for another word.
    """
    found = name or "file"
    if found not in get_args(LogMode):
        raise ValueError(f"{LOG_MODE}={found!r}: use one of {', '.join(get_args(LogMode))}")
    return cast("LogMode", found)
