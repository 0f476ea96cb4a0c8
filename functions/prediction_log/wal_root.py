"""Folder of the write-ahead files of a platform on this machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["default_wal_root"]


def default_wal_root(store_url: str) -> Path:
    """Derive the folder from the store's URL, so that all processes of one platform on this machine agree.

    Beside a store that is a folder; in the machine's temporary folder for a store elsewhere.
    """
    parts = urlsplit(store_url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        return path.with_name(f"{path.name}-wal")
    digest = hashlib.sha256(store_url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"toque-{os.getuid()}" / f"wal-{digest}"
