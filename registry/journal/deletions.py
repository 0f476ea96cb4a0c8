"""Record of journals that were deleted on purpose, so that an audit tells them from those that somebody took away.

Only journals of invocations are ever deleted, whole: by retention, and where they name a subject that is erased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toque.registry.journal.fold import Fold
from toque.registry.journal.journal import Journal
from toque.registry.times import Clock, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toque.registry.store import ObjectStore

PATH = "deletions"
_DELETABLE = "invocations/"


class Deletions:
    """Writer of the record of deleted journals in `store`, for many deletions: each but the first is one read and one write."""

    def __init__(self, store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> None:
        journal = Journal(store, PATH, actor=actor, clock=clock)
        self._count = Fold(journal, 0, lambda before, _: before + 1, encode=int, decode=int)

    def record(self, paths: Sequence[str]) -> None:
        """Record, in one entry, that the journals at `paths` are about to be deleted."""
        if paths:
            one: str | list[str] = paths[0] if len(paths) == 1 else list(paths)
            self._count.transact(lambda _: {"deleted": one})


def deleted_journals(store: ObjectStore) -> set[str]:
    """Read the paths of all journals that were deleted on purpose. Raises: Damaged."""
    entries = Journal(store, PATH, actor="audit").entries()
    return {path for entry in entries for path in _paths(entry.body) if path.startswith(_DELETABLE)}


def _paths(body: dict[str, Any]) -> list[str]:
    deleted = body["deleted"]
    return [deleted] if isinstance(deleted, str) else deleted
