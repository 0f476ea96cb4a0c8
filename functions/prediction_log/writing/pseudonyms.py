"""Pseudonyms: keyed hashes that stand in the log for units and entities, the same for the same value."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toque.functions.prediction_log.errors import PredictionLogError

__all__ = ["PSEUDONYM_KEY", "Pseudonyms", "pseudonym"]

PSEUDONYM_KEY = "TOQUE_PSEUDONYM_KEY"
"""Name of the secret that holds the key; without it nobody can tell whom a pseudonym stands for."""
_CHARACTERS = 32
_KEY_CHARACTERS = 16


def pseudonym(value: str, key: str) -> str:
    """Hash a value with a key (HMAC-SHA256), to 32 hexadecimal digits."""
    return hmac.digest(key.encode(), value.encode(), hashlib.sha256).hex()[:_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Which fields of a record carry pseudonyms, and the key that makes them.

    Raises: PredictionLogError for a key that could be guessed.
    """

    key: str
    fields: frozenset[Literal["unit", "entities"]]

    def __post_init__(self) -> None:
        if len(self.key) < _KEY_CHARACTERS:
            raise PredictionLogError(
                f"secret {PSEUDONYM_KEY} has {len(self.key)} characters; give it at least {_KEY_CHARACTERS} random ones"
            )

    def unit(self, value: str | None) -> str | None:
        """Replace a unit, if units carry pseudonyms."""
        return value if value is None or "unit" not in self.fields else pseudonym(value, self.key)

    def entities(self, rows: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]] | None:
        """Replace the values of entity rows, if these carry pseudonyms; a number has that of its decimal text."""
        if rows is None or "entities" not in self.fields:
            return rows
        return [
            {name: None if value is None else pseudonym(str(value), self.key) for name, value in row.items()}
            for row in rows
        ]
