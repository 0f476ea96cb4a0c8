"""Writes a new project's files: all of them under a temporary name, and then the folder in one step, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from toque.ray_apps.new_project.errors import InitError


def write_project(folder: Path, files: Mapping[str, str]) -> None:
    """Write files, by their paths in it, to a folder that does not exist yet.

    Killed at any point, it leaves no folder of the project's name. Raises: InitError if the folder exists, or its parent
    cannot be written to.
    """
    check_absent(folder)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InitError(
            f"{folder.parent} cannot be written to: {error.strerror}; go to another folder"
        ) from error
    try:
        for name, text in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made.chmod(0o777 & ~_umask())
        made.rename(folder)  # refuses a folder with something in it
    except OSError as error:
        raise InitError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_absent(folder: Path) -> None:
    """Raises: InitError if there is something at the folder's path already."""
    if os.path.lexists(folder):
        raise InitError(f"{folder} exists; take another name, or remove it")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
