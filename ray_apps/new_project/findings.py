"""Findings of a check of a user's table: what is odd, where, how often, an example, and what is or must be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_EXAMPLE = 40  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding in a table.

    column: its name, or empty for the whole file; count: values or rows concerned; remedy: what was done about it, or, if
    `refused`, what the user must do before a project can be made.
    """

    column: str
    problem: str
    remedy: str
    count: int = 0
    example: str = ""
    refused: bool = False

    def __str__(self) -> str:
        where = f"{self.column}: " if self.column else ""
        shown = f", such as {self.example}" if self.example else ""
        return f"{where}{self.problem}{shown}; {self.remedy}"


def shown(content: Any) -> str:
    """Quote a value of the table for a message, cut to 40 characters."""
    text = str(content)
    return repr(text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 1]}…")


def share(count: int, of: int) -> str:
    """Say how many of how many, with thousands separated."""
    return f"{count:,} of {of:,}"
