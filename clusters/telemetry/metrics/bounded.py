"""Bounds of labels: the first so many values of a label count by name, all further ones as `other`."""

from __future__ import annotations

OTHER = "other"
MOST = 200


class Bounded:
    """Values that a label may take in this process. most: after how many a new one is called `other`."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or `other` if too many others came before."""
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value
