"""The recipe book and its store: versions, runs, lineage and access on nothing but an object store.

It knows objects, journals and tables. It must not know features, functions, Ray or HTTP.
"""

from registry.errors import (
    AlreadyExists,
    Conflict,
    Damaged,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    RegistryError,
    Stale,
    Unavailable,
)
from registry.fold import Fold
from registry.journal import Entry, Journal
from registry.store import ObjectStore, open_store
from registry.tables import Table, TableSnapshot
from registry.times import Clock, as_utc, utc_now

__all__ = [
    "AlreadyExists",
    "Clock",
    "Conflict",
    "Damaged",
    "Entry",
    "Fold",
    "Forbidden",
    "InvalidInput",
    "Journal",
    "NotFound",
    "ObjectStore",
    "Refused",
    "RegistryError",
    "Stale",
    "Table",
    "TableSnapshot",
    "Unavailable",
    "as_utc",
    "open_store",
    "utc_now",
]
