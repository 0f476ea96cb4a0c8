"""Batch sources: declared files, tables and databases, loaded again and again, each row once."""

from collections.abc import Callable, Mapping
from typing import Any

from toque.featurestore.definitions.batch_source import BatchSource, Reader
from toque.featurestore.sources.files import CsvFiles, ParquetFiles
from toque.featurestore.sources.lake_tables import DeltaRows, IcebergRows
from toque.featurestore.sources.load_log import SourceLineage, SourceLoad
from toque.featurestore.sources.loading import SourceTable
from toque.featurestore.sources.sql import SqlTable

__all__ = [
    "BatchSource",
    "CsvFiles",
    "DeltaRows",
    "IcebergRows",
    "ParquetFiles",
    "SourceLineage",
    "SourceLoad",
    "SourceTable",
    "SqlTable",
]

READERS: Mapping[str, Callable[..., Reader | Any]] = {
    "csv": CsvFiles,
    "delta": DeltaRows,
    "iceberg": IcebergRows,
    "parquet": ParquetFiles,
    "sql": SqlTable,
}
"""Readers by the type that their description names."""
