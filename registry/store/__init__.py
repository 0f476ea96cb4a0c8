"""Object stores in a folder or in S3, and what is stored in them directly: blobs and Delta tables.

What reads and writes tables is imported when it is first asked for, as it brings Arrow and Delta.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from toque.registry.store.blobs import Blob
from toque.registry.store.folder import FolderStore
from toque.registry.store.object_store import Aged, Announce, ObjectInfo, ObjectStore, Progress, clock_skew_s
from toque.registry.store.private_folder import private_folder, temporary_folder
from toque.registry.store.tables.naming import RESERVED_TABLES, TableSnapshot, check_table_name
from toque.registry.store.urls import open_store

if TYPE_CHECKING:
    from toque.registry.store.check import UnfitStore, check_store
    from toque.registry.store.tables.history import find_rows, remove_rows, table_names
    from toque.registry.store.tables.parts import (
        Part,
        add_parts,
        append_with_parts,
        overwrite_with_parts,
        read_part,
        replace_with_parts,
        write_part,
    )
    from toque.registry.store.tables.row_ranges import PinnedRows
    from toque.registry.store.tables.table import Table

__all__ = [
    "RESERVED_TABLES",
    "Aged",
    "Announce",
    "Blob",
    "FolderStore",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "PinnedRows",
    "Progress",
    "Table",
    "TableSnapshot",
    "UnfitStore",
    "add_parts",
    "append_with_parts",
    "check_store",
    "check_table_name",
    "clock_skew_s",
    "find_rows",
    "open_store",
    "overwrite_with_parts",
    "private_folder",
    "read_part",
    "remove_rows",
    "replace_with_parts",
    "table_names",
    "temporary_folder",
    "write_part",
]
_LATE = {
    "check": ("UnfitStore", "check_store"),
    "tables.row_ranges": ("PinnedRows",),
    "tables.history": ("find_rows", "remove_rows", "table_names"),
    "tables.parts": (
        "Part",
        "add_parts",
        "append_with_parts",
        "overwrite_with_parts",
        "read_part",
        "replace_with_parts",
        "write_part",
    ),
    "tables.table": ("Table",),
}
_MODULES = {name: module for module, names in _LATE.items() for name in names}


def __getattr__(name: str) -> object:
    """Import what reads or writes tables when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
