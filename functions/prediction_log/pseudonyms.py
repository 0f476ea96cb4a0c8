"""Pseudonyms: keyed hashes that stand in the log for units and entities, the same for the same value."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PSEUDONYM_KEY", "pseudonym", "pseudonymous_entities"]

PSEUDONYM_KEY = "TOQUE_PSEUDONYM_KEY"
"""Name of the secret that holds the key; without it nobody can tell whom a pseudonym stands for."""
_CHARACTERS = 32


def pseudonym(value: str, key: str) -> str:
    """Hash a value with a key (HMAC-SHA256), to 32 hexadecimal digits."""
    return hmac.digest(key.encode(), value.encode(), hashlib.sha256).hex()[:_CHARACTERS]


def pseudonymous_entities(entities: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, str | None]]:
    """Replace every value of entity rows by its pseudonym; a number has that of its decimal text, None stays."""
    return [
        {name: None if value is None else pseudonym(str(value), key) for name, value in row.items()}
        for row in entities
    ]
