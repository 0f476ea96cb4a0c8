"""The error of a writer whose place in a journal was taken by another."""

from __future__ import annotations

from typing import Any

from registry.errors import RegistryError
from registry.journal.entry import Entry


class Conflict(RegistryError):  # noqa: N818 - as in `registry.errors`
    """Another writer's entry stands where ours should have gone: reread and decide again.

    number: the number both wanted; entry: what is there.
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
