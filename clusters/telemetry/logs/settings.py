"""Settings of a process's log lines, as its environment has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, cast

__all__ = ["LEVELS", "LogSettings"]

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Form and least level of the lines, and the share of requests that the access log has.

    access: 0 writes no access log; above 0 every request that the server failed is in it, whatever the share.
    """

    form: Literal["human", "json"] = "human"
    level: int = logging.WARNING
    access: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read `TOQUE_LOG_FORMAT`, `TOQUE_LOG_LEVEL` and `TOQUE_ACCESS_LOG`. Raises: ValueError, naming the variable."""
        level = environment.get("TOQUE_LOG_LEVEL") or "warning"
        if level not in LEVELS:
            raise ValueError(f"TOQUE_LOG_LEVEL={level!r}: choose from {', '.join(LEVELS)}")
        form, access = environment.get("TOQUE_LOG_FORMAT") or "human", environment.get("TOQUE_ACCESS_LOG")
        if form not in {"human", "json"}:
            raise ValueError(f"TOQUE_LOG_FORMAT={form!r}: lines are 'human' or 'json'")
        share = float(access) if access else 0.0
        if not 0 <= share <= 1:
            raise ValueError(f"TOQUE_ACCESS_LOG={access}: the share of requests to log is from 0 to 1")
        return cls(cast("Literal['human', 'json']", form), LEVELS[level], share)
