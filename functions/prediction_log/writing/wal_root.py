"""Folder of the write-ahead files of a platform on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from toque.registry.access import DEFAULT_WORKSPACE, split_workspace_url
from toque.registry.store import temporary_folder

__all__ = ["default_wal_root", "roots_beside"]

_WORKSPACES = "workspaces"


def default_wal_root(store_url: str, folder: str | Path | None = None) -> Path:
    """Derive the folder from the URL of a workspace's store, so that all its processes on this machine agree.

    folder: of the whole platform; by default beside its store if that is a folder, else in this user's temporary folder.
    A workspace other than the default one has a folder of its own there.
    Raises: Forbidden if another user made the temporary folder first.
    """
    platform_url, workspace = split_workspace_url(store_url)
    root = Path(folder) if folder is not None else _platform_root(platform_url)
    return root if workspace == DEFAULT_WORKSPACE else root / _WORKSPACES / workspace


def _platform_root(store_url: str) -> Path:
    parts = urlsplit(store_url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        return path.with_name(f"{path.name}-wal")
    digest = hashlib.sha256(store_url.encode()).hexdigest()[:16]
    return temporary_folder(f"wal-{digest}")


def roots_beside(root: Path, workspace: str) -> list[tuple[str, Path]]:
    """List all workspaces of a platform that have a folder on this machine, with these, by the folder of one of them."""
    platform = root if workspace == DEFAULT_WORKSPACE else root.parents[1]
    others = platform / _WORKSPACES
    names = sorted(path.name for path in others.iterdir()) if others.is_dir() else []
    return [(DEFAULT_WORKSPACE, platform), *((name, others / name) for name in names)]
