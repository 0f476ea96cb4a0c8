"""Folder of a user's project, found from the current one, and what it says: the project's module, where its state lies."""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from toque.ray_apps.cli.errors import UsageError

FILE = "pyproject.toml"
"""File whose table `tool.toque` marks a project's folder and names its module, as in `project = "houses"`."""


@dataclass(frozen=True, slots=True)
class ProjectFolder:
    """Folder of a project, and its module as TOQUE_PROJECT says it."""

    path: Path
    project: str


def find_project_folder(start: Path) -> ProjectFolder | None:
    """Find the nearest folder, from `start` upwards, whose pyproject.toml names a project. Raises: UsageError if one is broken."""
    for folder in (start, *start.parents):
        file = folder / FILE
        try:
            said = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("toque", {})
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} is no TOML: {error}") from error
        project = said.get("project") if isinstance(said, dict) else None
        if isinstance(project, str) and project:
            return ProjectFolder(folder, project)
    return None


def enter_project(folder: ProjectFolder | None) -> None:
    """Have this process, and those it starts, find the project of a folder; what the environment says stands before it."""
    if folder is None:
        return
    os.environ.setdefault("TOQUE_PROJECT", folder.project)
    here = str(folder.path)
    if here not in sys.path:
        sys.path.insert(0, here)
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
