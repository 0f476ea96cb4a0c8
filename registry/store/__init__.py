"""Object stores in a folder or in S3, and what is stored in them directly: blobs and Delta tables."""

from registry.store.blobs import Blob
from registry.store.folder import FolderStore
from registry.store.object_store import ObjectStore, Progress
from registry.store.private_folder import private_folder, temporary_folder
from registry.store.table_history import find_rows, remove_rows, table_names
from registry.store.tables import Table, TableSnapshot
from registry.store.urls import open_store

__all__ = [
    "Blob",
    "FolderStore",
    "ObjectStore",
    "Progress",
    "Table",
    "TableSnapshot",
    "find_rows",
    "open_store",
    "private_folder",
    "remove_rows",
    "table_names",
    "temporary_folder",
]
