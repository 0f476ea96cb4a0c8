"""Stores that are filled once and copied for every cell: a cell is to take the time of its verb, not of its world."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conditions.faults import FaultyStore
from toque.registry.store import FolderStore

_templates: dict[Callable[[FaultyStore], object], TemporaryDirectory[str]] = {}


def fill_once(faulty: FaultyStore, fill: Callable[[FaultyStore], object]) -> None:
    """Bring into an empty folder store what `fill` writes, which is run for the first one alone."""
    if fill not in _templates:
        folder = TemporaryDirectory()
        fill(FaultyStore(FolderStore(Path(folder.name) / "store")))
        _templates[fill] = folder
    shutil.copytree(Path(_templates[fill].name) / "store", faulty.store.root, dirs_exist_ok=True)  # type: ignore[attr-defined]  # of a folder store


_server: list[str] = []


def redis_of_the_matrix() -> str:
    """Address of the server that `use_redis` named."""
    return _server[-1]


def use_redis(url: str) -> None:
    """Let the worlds use a server, which they empty."""
    _server.append(url)
