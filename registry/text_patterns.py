"""Regular expressions of RE2, whatever the case: people declare them, and texts of any caller meet them in linear time."""

from __future__ import annotations

__all__ = ["check_pattern", "count_matches", "replace_matches"]


def check_pattern(pattern: str, *, field: str) -> str:
    """Check that a pattern is one and does not match every text. Raises: ValueError, naming the field it stands in."""
    import pyarrow as pa  # late: the registry is opened by many who have no pattern

    try:
        matches_nothing = count_matches(pattern, "") > 0
    except pa.ArrowInvalid as error:
        raise ValueError(f"{field}: {pattern!r:.80} is no regular expression of RE2: {error}") from error
    if matches_nothing:
        raise ValueError(f"{field}: {pattern!r:.80} matches every text; leave out what may be empty")
    return pattern


def count_matches(pattern: str, text: str) -> int:
    """Count the places of a text that a pattern matches."""
    import pyarrow as pa  # late, as above
    import pyarrow.compute as pc

    found: int = pc.count_substring_regex(pa.array([text]), pattern=_any_case(pattern))[0].as_py()
    return found


def replace_matches(pattern: str, text: str, replacement: str) -> str:
    """Put a replacement in all places of a text that a pattern matches."""
    import pyarrow as pa  # late, as above
    import pyarrow.compute as pc

    made: str = pc.replace_substring_regex(
        pa.array([text]), pattern=_any_case(pattern), replacement=replacement
    )[0].as_py()
    return made


def _any_case(pattern: str) -> str:
    return f"(?i:{pattern})"
