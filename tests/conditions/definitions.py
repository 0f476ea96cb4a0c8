"""What happens to a definition while it is in use: another is added, it is redefined, renamed, moved among others, or dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

D = TypeVar("D")


def added(definitions: Sequence[D], other: D) -> list[D]:
    """Add another definition beside those in use."""
    return [*definitions, other]


def put_first(definitions: Sequence[D], other: D) -> list[D]:
    """Add another definition before those in use, which moves each of them by one place."""
    return [other, *definitions]


def reordered(definitions: Sequence[D]) -> list[D]:
    """Turn the order of the definitions round."""
    return list(reversed(definitions))


def redefined(definitions: Sequence[D], name: str, /, **changes: Any) -> list[D]:
    """Change a definition under its own name."""
    return [_changed(each, changes) if _name(each) == name else each for each in definitions]


def renamed(definitions: Sequence[D], name: str, new: str) -> list[D]:
    """Give a definition another name, which to a catalog is another definition."""
    return redefined(definitions, name, name=new)


def dropped(definitions: Sequence[D], name: str) -> list[D]:
    """Leave a definition out, as a file does from which it was deleted."""
    return [each for each in definitions if _name(each) != name]


def _changed(definition: D, changes: dict[str, Any]) -> D:
    changed: D = replace(definition, **changes)  # type: ignore[type-var]  # definitions are frozen dataclasses
    return changed


def _name(definition: Any) -> str:
    return str(definition.name)


WRONG_COLUMNS = {
    "one that is not there": "amuont",
    "one in another case": "Amount",
    "a text": "user",
    "a list": "items",
}
"""Columns that nothing can be summed over, by what is wrong with them, of a source with `user`, `amount` and `items`."""

any_wrong_column = pytest.mark.parametrize("column", WRONG_COLUMNS.values(), ids=WRONG_COLUMNS.keys())
