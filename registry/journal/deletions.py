"""Record of journals that were deleted on purpose, so that an audit tells them from those that somebody took away.

Only journals of invocations are ever deleted, whole: by retention, and where they name a subject that is erased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from registry.journal.fold import Fold
from registry.journal.journal import Journal
from registry.times import Clock, utc_now

if TYPE_CHECKING:
    from registry.store import ObjectStore

PATH = "deletions"
_DELETABLE = "invocations/"


def record_deletion(store: ObjectStore, path: str, *, actor: str, clock: Clock = utc_now) -> None:
    """Record that the journal at `path` is about to be deleted."""
    count = Fold(
        Journal(store, PATH, actor=actor, clock=clock),
        0,
        lambda before, _: before + 1,
        encode=int,
        decode=int,
    )
    count.transact(lambda _: {"deleted": path})


def deleted_journals(store: ObjectStore) -> set[str]:
    """Read the paths of all journals that were deleted on purpose. Raises: Damaged."""
    entries = Journal(store, PATH, actor="audit").entries()
    return {path for entry in entries if (path := entry.body["deleted"]).startswith(_DELETABLE)}
