"""Object stores in a folder or in S3, and what is stored in them directly: blobs and Delta tables."""

from registry.store.blobs import Blob
from registry.store.check import UnfitStore, check_store
from registry.store.clock_skew import clock_skew_s
from registry.store.folder import FolderStore
from registry.store.object_store import Aged, Announce, ObjectInfo, ObjectStore, Progress
from registry.store.private_folder import private_folder, temporary_folder
from registry.store.row_ranges import PinnedRows
from registry.store.table_history import find_rows, remove_rows, table_names
from registry.store.table_parts import Part, append_with_parts, overwrite_with_parts, write_part
from registry.store.tables import RESERVED_TABLES, Table, TableSnapshot, check_table_name
from registry.store.urls import open_store

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
    "append_with_parts",
    "check_store",
    "check_table_name",
    "clock_skew_s",
    "find_rows",
    "open_store",
    "overwrite_with_parts",
    "private_folder",
    "remove_rows",
    "table_names",
    "temporary_folder",
    "write_part",
]
