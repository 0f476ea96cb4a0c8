"""Ids beside their look-alikes: prefixes, longer ones, parts of others, other case, letters that look the same."""

from __future__ import annotations

from hypothesis import strategies as st

IDS = (
    "user-1234",
    "ann@example.com",
    "c-81723",
    "jos\u00e9@example.org",
    "7",
    "4f1d9a02-77aa",
    "N14228",
    "a b c d e f",
)
"""Ids as callers have them: with separators, an address, short ones, letters beyond ASCII, with spaces."""

_HOMOGLYPHS = str.maketrans(
    {"a": "\u0430", "e": "\u0435", "o": "\u043e", "c": "\u0441", "1": "l", "-": "\u2010"}
)


def look_alikes(value: str) -> list[str]:
    """List ids that resemble `value` and are others'."""
    candidates = [
        value[:-1],
        value[1:],
        f"{value}5",
        f"{value}-b",
        f"{value}.au",
        f"{value}_old",
        f"{value}@example.net",
        f"{value}'s",
        f"jo{value}",
        f"mary-{value}",
        f"j.{value}",
        f"x+{value}",
        f"{value}{value}",
        value.upper(),
        value.capitalize(),
        value.translate(_HOMOGLYPHS),
        f"0{value}",
    ]
    return sorted({candidate for candidate in candidates if candidate not in ("", value)})


ids = st.one_of(
    st.sampled_from(IDS),
    st.text("abcXYZ019-._@\u00e9", min_size=1, max_size=14).filter(
        lambda text: text[0].isalnum() and text[-1].isalnum()
    ),
)
"""Ids, of which some have several kinds of separators."""
