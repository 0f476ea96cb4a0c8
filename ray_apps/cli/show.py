"""How the commands print: tables for people, one JSON value for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

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
    """Rows under headings."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(_cell(each) for each in row))
    out.print(made)


def _cell(content: Any) -> str:
    if content is None:
        return "-"
    if isinstance(content, float):
        return f"{content:.4g}"
    if isinstance(content, bool):
        return "yes" if content else "no"
    return str(content).replace("[", r"\[")
