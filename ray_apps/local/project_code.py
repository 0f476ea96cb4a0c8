"""Code of the users' projects as it lies on this machine, to tell whether what runs is what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

__all__ = ["changed_files", "code_of"]


def code_of(project: str | None) -> dict[str, str]:
    """Digest each file of Python code of the projects, by its path; nothing of them is imported. project: as TOQUE_PROJECT says."""
    modules = [item.rpartition("=")[2].strip() for item in (project or "").split(",")]
    files = sorted({path for module in modules if module for path in _files(module)})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the files that were changed, added or removed."""
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path))


def _files(module: str) -> Iterator[Path]:
    """Yield the files of a module, or of a package with all below it.

    Found from its first package on, as to ask for a module inside would import that: it may bring Ray, which reads the platform's
    environment when it is first imported.
    """
    first, *inner = module.split(".")
    try:
        found = find_spec(first)
    except ValueError:  # a module without a file
        return
    if found is None:
        return
    places = [Path(each).joinpath(*inner) for each in found.submodule_search_locations or ()]
    if not inner and found.origin is not None and not places:
        yield Path(found.origin)
    for place in places:
        yield from place.rglob("*.py")
        if (file := place.with_suffix(".py")).is_file() and inner:
            yield file
