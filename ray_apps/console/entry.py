"""Entry of the console's navigation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """Link to a page in the navigation. title: its text; path: first part of the address; role: who may follow it."""

    title: str
    path: str
    role: str = "viewer"
