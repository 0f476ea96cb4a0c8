"""Access log: a line for each answered request, or for a share of them, and for every one that the server failed."""

from __future__ import annotations

import logging
import random

__all__ = ["ACCESS_LOGGER", "AccessLog"]

ACCESS_LOGGER = "toque.access"
_SERVER_FAULT = 500


class AccessLog:
    """Writes answered requests as log records at level INFO. share: of the requests that succeed or are refused."""

    def __init__(self, share: float, *, chance: random.Random | None = None) -> None:
        self._share, self._chance = share, chance or random.Random()
        self._logger = logging.getLogger(ACCESS_LOGGER)
        self._logger.setLevel(logging.INFO)

    def write(self, method: str, path: str, status: int, duration_s: float, **fields: object) -> None:
        """Write one request, or leave it out by chance; path: without the query, which may hold a secret."""
        if status < _SERVER_FAULT and self._chance.random() >= self._share:
            return
        known = {name: value for name, value in fields.items() if value not in (None, "")}
        known |= {"method": method, "path": path, "status": status, "duration_ms": round(duration_s * 1e3, 3)}
        self._logger.info("%s %s %d %.1f ms", method, path, status, duration_s * 1e3, extra={"fields": known})
