"""Suggestion of the name that was probably meant, for messages about a name that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, or the first that begins so: "did you mean 'late'? ", empty if none is near."""
    folded: dict[str, str] = {}
    for other in known:
        if name and other.startswith(name):
            return f"did you mean {other!r}? "
        folded[other.casefold()] = other
    near = get_close_matches(name.casefold(), list(folded), n=1)
    return f"did you mean {folded[near[0]]!r}? " if near else ""
