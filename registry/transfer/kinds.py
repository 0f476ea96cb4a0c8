"""Kinds of stored objects by what may happen to them while a store is copied, told from their keys."""

from __future__ import annotations

import re
from enum import StrEnum

LARGE_BYTES = 16 << 20
"""Size from which an object counts as content: what is rewritten in place is small."""

_WORKSPACE = re.compile(r"workspaces/[^/]+/")
_ENTRY = re.compile(r"(.+)/entries/([0-9]{8,})\.json\Z")
_COMMIT = re.compile(r"(tables/.+\.delta)/_delta_log/([0-9]{20})\.json\Z")
_LEFT_OUT = re.compile(
    r"(?:leases|leaders|probes|copies|erasures/leases|console)/|invocations/[^/]+/lease\.json\Z"
)
_CONTENT = re.compile(
    r"tables/.+\.parquet\Z|models/[^/]+/(?:blobs|signatures)/|values/|runs/[^/]+/(?:run\.json\Z|segments/|artifacts/)"
)


class Kind(StrEnum):
    """Kind of a stored object.

    LEFT_OUT: belongs to running processes, such as a lease, to a session of the console, or to a copy itself. CONTENT: written once, before what
    names it. ENTRY, COMMIT: of a journal and of a table's log; they name what was written before. STATE: rewritten in
    place, such as a cursor.
    """

    LEFT_OUT = "left-out"
    CONTENT = "content"
    ENTRY = "entry"
    COMMIT = "commit"
    STATE = "state"


def kind_of(key: str, size_bytes: int = 0) -> Kind:
    """Tell the kind of the object under `key`; one that is large is content."""
    inside = _inside(key)
    if _LEFT_OUT.match(inside):
        return Kind.LEFT_OUT
    if _ENTRY.match(inside):
        return Kind.ENTRY
    if _COMMIT.match(inside):
        return Kind.COMMIT
    if size_bytes > LARGE_BYTES or _CONTENT.match(inside):
        return Kind.CONTENT
    return Kind.STATE


def numbered(key: str) -> tuple[str, int]:
    """Split the key of an entry or commit into the journal or table it belongs to, and its number."""
    inside = _inside(key)
    found = _ENTRY.match(inside) or _COMMIT.match(inside)
    if found is None:
        raise ValueError(f"{key} is neither an entry nor a commit")
    return key[: len(key) - len(inside)] + found.group(1), int(found.group(2))


def is_deletable(series: str) -> bool:
    """Whether a journal may be deleted, which retention does with those of invocations."""
    return _inside(series).startswith("invocations/")


def _inside(key: str) -> str:
    found = _WORKSPACE.match(key)
    return key[found.end() :] if found else key
