"""Code of the users' projects as it lies on this machine, to tell whether what runs is what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from functions.runtime.context import projects_of

__all__ = ["changed_files", "code_of"]


def code_of(project: str | None) -> dict[str, str]:
    """Digest each file of Python code of the projects, by its path; nothing of them is imported. project: as TOQUE_PROJECT says."""
    modules = projects_of(project or "").values()
    files = sorted({path for module in modules for path in _files(module)})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the files that were changed, added or removed."""
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path))


def _files(module: str) -> Iterator[Path]:
    """Yield the files of a module, or of a package with all below it."""
    try:
        found = find_spec(module)
    except (
        ModuleNotFoundError,
        ValueError,
    ):  # no such package, or a module without a file: its import says so
        return
    if found is None:
        return
    for folder in found.submodule_search_locations or ():
        yield from Path(folder).rglob("*.py")
    if not found.submodule_search_locations and found.origin is not None:
        yield Path(found.origin)
