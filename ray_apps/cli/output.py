"""How the commands print: tables for people, one JSON value for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_GAP = 2  # between two columns
_LAST = 40  # characters of the last column that fit at least
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d(\.\d+)?)?(Z|\+00:00)")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """An error, to standard error."""
    err.print(text, style="red", markup=False)


def say(text: str) -> None:
    """A line for the person at the terminal."""
    out.print(text, markup=False)


def value(content: Any) -> None:
    """A value as JSON: coloured at a terminal, plain in a pipe."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    if out.is_terminal:
        out.print_json(text)
    else:
        out.file.write(f"{text}\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under headings; only the last column is wrapped, so that every name and id can be copied whole."""
    lines = [[_cell(each) for each in row] for row in rows]
    *widths, last = (max(map(len, column)) for column in zip(columns, *lines, strict=True))
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, no_wrap=name != columns[-1], overflow="fold")
    for line in lines:
        made.add_row(*line)
    needed = sum(width + _GAP for width in widths) + min(last, _LAST)
    out.print(made, width=max(out.width, needed), crop=False)


def _cell(content: Any) -> str:
    if content is None:
        return "-"
    if isinstance(content, float):
        return f"{content:.4g}"
    if isinstance(content, bool):
        return "yes" if content else "no"
    return _TIME.sub(r"\1 \2", str(content)).replace("[", r"\[")
