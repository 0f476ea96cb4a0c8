"""Catalog by which Ray Data writes the store's tables: with the store's credentials, renewed while a job runs, and encryption."""

from typing import Any

from ray.data.catalog import Catalog, ResolvedSource

from toque.registry.store import ObjectStore
from toque.registry.store.tables.files import file_system


class StoreCatalog(Catalog):
    """Catalog of the tables of a store, by their names.

    Ray resolves a table again when its credentials have expired; workers renew theirs by themselves.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def resolve(self, table: str, **_: Any) -> ResolvedSource:
        """Find where the table `table` is, and how it is reached."""
        uri, options = self.store.table_location(table)
        if not options:
            return ResolvedSource(path=uri)
        return ResolvedSource(path=uri, filesystem=file_system(self.store, table), storage_options=options)
