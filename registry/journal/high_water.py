"""High-water marks: how far this machine has seen journals, so that one whose last entries were deleted is noticed when it is opened.

What is left of such a journal is genuine, whatever MACs it has: it is the state of an earlier time, in which a revoked token lives.
Marks are in the memory of the process and, where the audit keys are in a file, in a file beside it, for the processes that start later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import Damaged

if TYPE_CHECKING:
    from registry.journal.journal import Journal
    from registry.store import ObjectStore

_logger = logging.getLogger(__name__)
_marks: dict[str, Mark] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Mark:
    """Number of entries of a journal, and digests of the last and of the first; that is empty where it was not read."""

    count: int
    digest: str
    first: str = ""


def mark_of(store: ObjectStore, path: str) -> Mark | None:
    """Find how far this machine has seen a journal; reads a file at most."""
    name = _name(store, path)
    with _lock:
        found = [mark for mark in (_marks.get(name), _in_file(store).get(name)) if mark is not None]
    return max(found, key=lambda mark: mark.count, default=None)


def note(store: ObjectStore, path: str, mark: Mark) -> None:
    """Remember how far a journal was seen; an older mark of the same journal stays."""
    name = _name(store, path)
    with _lock:
        before = _marks.get(name)
        if before is not None and _is_same(before, mark):
            if before.count >= mark.count:
                return
            mark = Mark(mark.count, mark.digest, mark.first or before.first)
        _marks[name] = mark
        _keep(store, name, mark)


def check(journal: Journal, mark: Mark | None, count: int, last_digest: str) -> None:
    """Compare a journal as it was read with the mark that it had before: what came meanwhile may be beyond what was read.

    Raises: Damaged if it lost entries that this machine has seen.
    """
    if (
        mark is None
        or not count
        or count > mark.count
        or (count == mark.count and last_digest == mark.digest)
    ):
        return
    if mark.first:
        first = journal.find(0)
        if first is not None and first.digest != mark.first:
            return  # another journal: the store was made anew
    file = journal.store.audit_keys.marks_file
    remedy = f"delete {file}" if file is not None else "start the process again"
    raise Damaged(
        f"{journal.path} ends after {count} entries, and this machine has seen {mark.count}: the last were deleted or changed. "
        f"Put them back from a copy of the store; if you restored an older backup on purpose, {remedy}"
    )


def forget() -> None:
    """Forget the marks of this process, as one that starts has none."""
    with _lock:
        _marks.clear()


def _is_same(before: Mark, after: Mark) -> bool:
    return not before.first or not after.first or before.first == after.first


def _name(store: ObjectStore, path: str) -> str:
    return hashlib.sha256(f"{store.url} {path}".encode()).hexdigest()


def _in_file(store: ObjectStore) -> dict[str, Mark]:
    file = store.audit_keys.marks_file
    if file is None:
        return {}
    try:
        return {name: Mark(**mark) for name, mark in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # there is none yet, or a crash has torn it


def _keep(store: ObjectStore, name: str, mark: Mark) -> None:
    """Write a mark to the file, if there is one to be written; the memory of processes stands in for it else."""
    file = store.audit_keys.marks_file
    if file is None:
        return
    marks = _in_file(store)
    before = marks.get(name)
    if before is not None and _is_same(before, mark) and before.count >= mark.count:
        return
    marks[name] = mark
    partial = Path(f"{file}.{uuid.uuid4().hex}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(json.dumps({name: asdict(mark) for name, mark in marks.items()}))
        partial.replace(file)
    except OSError as error:
        _logger.debug("%s cannot be written: %s", file, error)
        with suppress(OSError):
            os.unlink(partial)  # noqa: PTH108  # the same call for a path that may not be there
