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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toque.registry.errors import Damaged, RegistryError
from toque.registry.journal.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from toque.registry.store import ObjectStore

_logger = logging.getLogger(__name__)
_marks: dict[str, Mark] = {}
_compared: set[str] = set()  # addresses of stores that this process has seen to be those of the file
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Mark:
    """Number of entries of a journal, and digests of the last and of the first; that is empty where it was not read.

    path: of the journal; empty in a mark of a store in whose place there is another one now.
    """

    count: int
    digest: str
    first: str = ""
    path: str = ""


def mark_of(store: ObjectStore, path: str) -> Mark | None:
    """Find how far this machine has seen a journal; reads a file at most."""
    return _all(store).get(_name(store, path))


def note(store: ObjectStore, path: str, mark: Mark) -> None:
    """Remember how far a journal was seen; an older mark of the same journal stays."""
    name, before = _name(store, path), _marks.get(_name(store, path))
    if store.url not in _compared or (before is not None and not _is_same(before, mark)):
        with suppress(RegistryError):  # it is compared at the next entry
            if _is_new(store):
                _set_aside(store)
            _compared.add(store.url)
    with _lock:
        before = _marks.get(name)
        if before is not None and _is_same(before, mark):
            if before.count >= mark.count:
                return
            mark = replace(mark, first=mark.first or before.first)
        _marks[name] = mark = replace(mark, path=path)
        marks = _in_file(store)
        kept = marks.get(name)
        if kept is None or not _is_same(kept, mark) or kept.count < mark.count:
            _write(store, marks | {name: mark})


def check(journal: Journal, mark: Mark | None, count: int, last_digest: str) -> None:
    """Compare a journal as it was read with the mark that it had before: what came meanwhile may be beyond what was read.

    Raises: Damaged if it lost entries that this machine has seen.
    """
    if mark is None or count > mark.count or (count == mark.count and last_digest == mark.digest):
        return
    if not count and (not mark.path or _is_new(journal.store)):
        return
    if count and mark.first:
        first = journal.find(0)
        if first is not None and first.digest != mark.first:
            return  # another journal: the store was made anew
    file = journal.store.audit_keys.marks_file
    remedy = f"delete {file}" if file is not None else "start the process again"
    raise Damaged(
        f"{journal.path} ends after {count} entries, and this machine has seen {mark.count}: the last were deleted or changed. "
        f"Put them back from a copy of the store; if you restored an older backup on purpose, {remedy}"
    )


def lost(store: ObjectStore, present: Container[str]) -> list[Mark]:
    """List the journals of a store that this machine has seen and that are not among those `present`; none of a store that was made anew."""
    gone = [mark for mark in _of_store(store).values() if mark.path not in present]
    return [] if not gone or _is_new(store) else gone


def forget() -> None:
    """Forget the marks of this process, as one that starts has none."""
    with _lock:
        _marks.clear()
        _compared.clear()


def _is_new(store: ObjectStore) -> bool:
    """Whether nothing is left of all journals that this machine has seen in a store, which then was made anew in the same place.

    As long as one is left it is the same store, and an empty journal was deleted, which nothing does on purpose to these. A store in which
    somebody deleted all of them cannot be told from a new one here; published heads tell it.
    """
    for mark in _of_store(store).values():
        number, digest = (0, mark.first) if mark.first else (mark.count - 1, mark.digest)
        try:
            entry = Journal(store, mark.path, actor="reader").find(number)
        except Damaged:
            return False
        if entry is not None and entry.digest == digest:
            return False
    return True


def _set_aside(store: ObjectStore) -> None:
    """Take the paths from the marks of a store that was made anew: they show no more that it is the same, yet an old copy is refused."""
    before = {name: replace(mark, path="") for name, mark in _of_store(store).items()}
    with _lock:
        _marks.update(before)
        if before:
            _write(store, _in_file(store) | before)


def _of_store(store: ObjectStore) -> dict[str, Mark]:
    """Marks of the journals of a store by name, without those of its workspaces."""
    return {name: mark for name, mark in _all(store).items() if name == _name(store, mark.path)}


def _all(store: ObjectStore) -> dict[str, Mark]:
    """Marks of journals of any store by name: of this process and of those that share the file of keys."""
    with _lock:
        marks = _in_file(store)
        for name, mark in _marks.items():
            if name not in marks or marks[name].count < mark.count:
                marks[name] = mark
    return marks


def _is_same(before: Mark, after: Mark) -> bool:
    return bool(before.path) and (not before.first or not after.first or before.first == after.first)


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


def _write(store: ObjectStore, marks: Mapping[str, Mark]) -> None:
    """Write marks to the file, if there is one to be written; the memory of processes stands in for it else."""
    file = store.audit_keys.marks_file
    if file is None:
        return
    partial = Path(f"{file}.{uuid.uuid4().hex}")
    try:
        partial.touch(mode=0o600)
        partial.write_text(json.dumps({name: asdict(mark) for name, mark in marks.items()}))
        partial.replace(file)
    except OSError as error:
        _logger.debug("%s cannot be written: %s", file, error)
        with suppress(OSError):
            os.unlink(partial)  # noqa: PTH108  # the same call for a path that may not be there
