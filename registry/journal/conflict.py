"""The error raised when another writer took the next number of a journal."""

from __future__ import annotations

from typing import Any

from toque.registry.errors import RegistryError
from toque.registry.journal.entry import Entry


class Conflict(RegistryError):  # noqa: N818 - as in `toque.registry.errors`
    """Another writer's entry has the number that this one was to get: reread and decide again.

    number: of the entry; entry: the other writer's.
    """

    def __init__(self, number: int, entry: Entry, *, path: str = "journal") -> None:
        self.number = number
        self.entry = entry
        self.path = path
        super().__init__(
            f"{path}: entry {number} was written by {entry.actor!r} at {entry.at.isoformat()}; "
            "reread the journal and decide again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_conflict, (self.number, self.entry, self.path)


def _rebuild_conflict(number: int, entry: Entry, path: str) -> Conflict:
    return Conflict(number, entry, path=path)
