"""Validation of names and keys: no disguised paths, nothing that a file system cannot hold."""

from __future__ import annotations

import re

from toque.registry.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
# Accepts nearly every key in one step; each rule below holds for what it matches.
_PLAIN = re.compile(r"(?=.{1,240}\Z)[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")
_MAX_KEY_BYTES = 900  # S3 allows 1,024 for prefix and key together
_MAX_PART_BYTES = 240  # file systems allow 255, our temporary names need some


def check_name(name: str, *, what: str = "name") -> str:
    """Return `name` if it may name a model, alias, arm, experiment or token.

    Raises: InvalidInput, with the rule.
    """
    if not isinstance(name, str) or not _NAME.match(name) or ".." in name:
        raise InvalidInput(
            f"{what}={name!r} is not a name: 1 to 128 letters, digits, '.', '_', '-', starting with a "
            "letter or digit, without '..' or '/'"
        )
    return name


def check_key(key: str) -> str:
    """Return `key` if it may name an object in every kind of store.

    Raises: InvalidInput, with the rule.
    """
    problem = _key_problem(key)
    if problem:
        raise InvalidInput(f"key={key!r} {problem}; use parts joined by '/', e.g. 'models/flights/0001.json'")
    return key


def _key_problem(key: str) -> str:
    if not isinstance(key, str) or not key:
        return "is empty"
    if _PLAIN.match(key):
        return ""
    try:
        sizes_bytes = [len(part.encode()) for part in key.split("/")]
    except UnicodeEncodeError:
        return "is not valid Unicode"
    parts = key.split("/")
    rules = {
        "holds a control character or a backslash": bool(_CONTROL.search(key)),
        f"is longer than {_MAX_KEY_BYTES} bytes": sum(sizes_bytes) + len(parts) > _MAX_KEY_BYTES,
        "has an empty, '.' or '..' part": not {"", ".", ".."}.isdisjoint(parts),
        "starts with '.tmp', which the folder store keeps for itself": parts[0] == ".tmp",
        f"has a part longer than {_MAX_PART_BYTES} bytes": max(sizes_bytes) > _MAX_PART_BYTES,
    }
    return next((problem for problem, broken in rules.items() if broken), "")
