"""Lays out values as lines of text: a table that fits the terminal, or a block of lines for each row.

A number, an identifier, a name or a date is whole at any width. Only free text is shortened, at its middle and between
words.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from toque.ray_apps.cli.output import Columns

_GAP = 2  # spaces between two columns
_ELLIPSIS = "…"
_LEAST_TEXT = 16  # cells that a shortened text keeps; with less, each row becomes a block
_LARGE = 10_000.0  # from here on a rounded number would lose digits before the point
_EXACT = 1e15  # from here on a float's own notation is the only honest one
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?(?:Z|\+00:00)")
_WORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?|\S+")  # a date with its time is one word
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a name may not move the terminal's cursor


def laid_out(
    columns: Columns, rows: Sequence[Sequence[Any]], *, width: int | None, exact: bool = False
) -> list[str]:
    """The lines of a table that is at most `width` cells wide; where it cannot be, a block of lines for each row.

    width: None for any width. exact: numbers are not rounded.
    """
    headings = [each.heading for each in columns]
    cells = [[cell_text(each, exact=exact) for each in row] for row in rows]
    if width is not None:
        fitted = _fitted(columns, cells, width)
        if fitted is None:
            blocks = [["", *block(headings, row, width)] for row in cells]
            return list(chain.from_iterable(blocks))[1:]
        cells = fitted
    right = [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    sizes = _sizes(headings, cells)
    lines = [styled(_line(headings, sizes, right), "1", sys.stdout)]
    return lines + [_line(row, sizes, right) for row in cells]


def block(headings: Sequence[str], row: Sequence[str], width: int | None) -> list[str]:
    """A line for each value, wrapped between words; a word that is too long goes beyond the width."""
    margin = max(map(_cells, headings)) + _GAP
    lines = []
    for heading, cell in zip(headings, row, strict=True):
        parts = [cell] if width is None else wrapped(cell, width - margin)
        lines.append(styled(_padded(heading, margin), "1", sys.stdout) + parts[0])
        lines += [" " * margin + part for part in parts[1:]]
    return lines


def shortened(text: str, room: int) -> str:
    """`text` with words of its middle left out, so that it takes at most `room` cells; each word is whole or left out.

    A single word without digits is cut itself; one with digits may be a number or an identifier, and stays whole.
    """
    if _cells(text) <= room:
        return text
    words = _WORD.findall(text)
    head: list[str] = []
    tail: list[str] = []
    left = room - 1
    while words:
        front = sum(map(_cells, head)) <= sum(map(_cells, tail))
        if _cells(words[0 if front else -1]) >= left:
            front = not front  # what does not fit at one end may do so at the other
        word = words[0 if front else -1]
        if _cells(word) >= left:
            break
        left -= _cells(word) + 1
        if front:
            head.append(words.pop(0))
        else:
            tail.insert(0, words.pop())
    if head or tail:
        return " ".join([*head, _ELLIPSIS, *tail])
    if re.search(r"\d", words[0]):
        return f"{words[0]} {_ELLIPSIS}" if len(words) > 1 else words[0]
    return f"{words[0][: room // 2]}{_ELLIPSIS}{words[0][len(words[0]) - (room - 1) // 2 :]}"


def wrapped(text: str, room: int) -> list[str]:
    """`text` in lines of at most `room` cells, broken between words; a word that is too long stays whole."""
    lines: list[str] = []
    for word in _WORD.findall(text):
        if lines and _cells(lines[-1]) + 1 + _cells(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [text]


def plain(content: Any) -> str:
    """A value as text: names of a list with commas, any other collection as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(isinstance(each, str | int) for each in content):
        return ", ".join(map(str, content))
    return json.dumps(content, ensure_ascii=False, default=str)


def cell_text(content: Any, *, exact: bool) -> str:
    """A value as a person reads it; `exact`: not rounded, and times with their seconds."""
    if content is None or content in ("", [], {}, ()):
        return "-"
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, float):
        return repr(content) if exact else _rounded(content)
    text = plain(content)
    keep = r"\1 \2\3" if exact else r"\1 \2"
    return CONTROL.sub("", " ".join(_TIME.sub(keep, text).split()))


def styled(text: str, code: str, stream: TextIO) -> str:
    """`text` in the style of an ANSI code, such as "1" for bold, where the stream shows it."""
    return f"\x1b[{code}m{text}\x1b[0m" if coloured(stream) else text


def coloured(stream: TextIO) -> bool:
    """Whether the stream is a terminal whose user wants colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def _fitted(columns: Columns, cells: list[list[str]], width: int) -> list[list[str]] | None:
    """The cells, with texts shortened so that every line fits; None if that is not possible."""
    headings = [each.heading for each in columns]
    sizes = _sizes(headings, cells)
    texts = [at for at, column in enumerate(columns) if column.text]
    room = width - _GAP * (len(columns) - 1) - sum(size for at, size in enumerate(sizes) if at not in texts)
    allowed: dict[int, int] = {}
    for done, at in enumerate(sorted(texts, key=lambda each: sizes[each])):
        allowed[at] = min(sizes[at], room // (len(texts) - done))
        room -= allowed[at]
    least = {at: min(sizes[at], max(_LEAST_TEXT, _cells(headings[at]))) for at in texts}
    if room < 0 or any(allowed[at] < least[at] for at in texts):
        return None
    fitted = [
        [shortened(cell, allowed[at]) if at in allowed else cell for at, cell in enumerate(row)]
        for row in cells
    ]
    return fitted if sum(_sizes(headings, fitted)) + _GAP * (len(columns) - 1) <= width else None


def _line(cells: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        " " * (size - _cells(cell)) + cell if aligned else _padded(cell, size)
        for cell, size, aligned in zip(cells, sizes, right, strict=True)
    ]
    return (" " * _GAP).join(padded).rstrip()


def _padded(text: str, size: int) -> str:
    return text + " " * (size - _cells(text))


def _sizes(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(_cells, column)) for column in zip(headings, *cells, strict=True)]


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _rounded(number: float) -> str:
    """A float in five digits, but never fewer than stand before its point."""
    if _LARGE <= abs(number) < _EXACT:
        return f"{number:.0f}"
    return f"{number:.5g}" if abs(number) < _LARGE else repr(number)


def _is_number(content: Any) -> bool:
    return isinstance(content, int | float) and not isinstance(content, bool)
