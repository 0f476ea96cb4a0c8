"""Templates of pages: escaped by default, with filters that write numbers, times and digests the same way everywhere."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

STATIC: Final = Path(__file__).with_name("static")
_TEMPLATES: Final = Path(__file__).with_name("templates")
_DIGITS: Final = 5
_DIGEST_CHARS: Final = 12
_JSON_CHARS: Final = 20_000
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000.0
_MINUTE_S: Final = 60
_PERIODS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_SPAN: Final = re.compile(r"\b(?:(\d+) days?, )?(\d{1,2}):(\d{2}):(\d{2}(?:\.\d+)?)(?!\S*[+Z])")
NOTHING: Final = "–"


def make_templates(*folders: Path) -> Environment:
    """Make the environment of the templates in some folders, which may use those that all pages share.

    A name that a page did not give is an error, never empty text.
    """
    templates = Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES, STATIC]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": number,
        "percent": percent,
        "size": size,
        "time": time_of,
        "digest": digest,
        "words": words,
        "milliseconds": milliseconds,
        "duration": duration,
        "json": json_text,
        "shell": shell,
        "cut": cut,
        "aligned": aligned,
        "spans": spans,
    }
    return templates


def number(value: Any) -> str:
    """Write a number with at most five significant digits and a space between thousands; other values as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {True: "∞", False: "−∞"}[value > 0] if math.isinf(value) else "NaN"
    if float(value).is_integer() and abs(value) < 10**15:
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.{_DIGITS}g}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share between 0 and 1 as percent."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}\u202f%".replace("-", "−")


def milliseconds(value: float | None) -> str:
    """Write a time that was given in milliseconds."""
    return NOTHING if value is None else f"{value:.3g}\u202fms"


def duration(value: float | None) -> str:
    """Write a number of seconds in its largest two units, such as `1 d 6 h`; below a minute as a number of seconds."""
    if value is None:
        return NOTHING
    if not math.isfinite(value) or abs(value) < _MINUTE_S:
        return f"{number(value)}\u202fs"
    left, parts = round(abs(value)), []
    for unit, seconds in _PERIODS:
        count, left = divmod(left, seconds)
        parts.append(f"{number(count)}\u202f{unit}" if count else "")
    first = next(index for index, part in enumerate(parts) if part)
    text = " ".join(part for part in parts[first : first + 2] if part)
    return f"−{text}" if value < 0 else text


def spans(text: str) -> str:
    """Write the spans of time in a sentence as people do: Python's `28 days, 0:00:00` as `28 d`.

    Sentences of verdicts are recorded, and made again to be compared, so they stay as they are.
    """
    return _SPAN.sub(_as_duration, text)


def _as_duration(match: re.Match[str]) -> str:
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return duration(days * 86_400 + hours * 3_600 + minutes * 60 + round(seconds))


def size(value: float | None) -> str:
    """Write a number of bytes in decimal units."""
    if value is None:
        return NOTHING
    left, unit = float(value), _UNITS[0]
    for unit in _UNITS:
        if left < _STEP or unit == _UNITS[-1]:
            break
        left /= _STEP
    return f"{left:.3g}\u202f{unit}" if unit != _UNITS[0] else f"{int(left)}\u202fB"


def time_of(value: Any) -> Markup | str:
    """Write a moment in UTC, which the page's script shows in the viewer's zone, UTC on hover."""
    if not value:
        return NOTHING
    at = as_moment(value)
    return Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{:%Y-%m-%d %H:%M} UTC</time>').format(
        at.isoformat(timespec="seconds"), at, at
    )


def as_moment(value: datetime | str) -> datetime:
    """Read a moment as the API writes it; one without a zone is UTC."""
    at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def digest(value: Any) -> Markup | str:
    """Write the beginning of a digest or id, the whole on hover."""
    if not value:
        return NOTHING
    text = str(value)
    return Markup('<code title="{}">{}</code>').format(text, text[:_DIGEST_CHARS])


def json_text(value: Any) -> str:
    """Write JSON values with indents, as far as a page has room."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= _JSON_CHARS else f"{text[:_JSON_CHARS]}…\n({len(text):,} characters)"


def shell(value: Any) -> str:
    """Write a value as one word of a command line, mappings and lists as JSON; no text in it can end the word."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return shlex.quote(text)


def aligned(titles: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the titles of columns that hold numbers with the class that aligns them, as `table` of parts.html takes them."""
    return [(title, "num") for title in titles]


def cut(text: str, most: int) -> str:
    """Shorten a text that is longer than a drawing has room for."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def words(value: Any) -> str:
    """Write an identifier of the platform as words."""
    return NOTHING if value is None else str(value).replace("_", " ").replace("-", " ")
