"""Logged feature vectors as tables and arrays: the columns that a version reads, and samples of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry import ModelVersion


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Names of the features of a version, in the order in which they are logged."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @classmethod
    def of(cls, version: ModelVersion) -> FeatureColumns:
        """Read the columns from a version's signature. Raises: ValueError if that names no columns."""
        specs = version.signature.inputs if version.signature is not None else []
        numeric = [name for spec in specs if spec.datatype != "BYTES" for name in spec.columns or []]
        categorical = [name for spec in specs if spec.datatype == "BYTES" for name in spec.columns or []]
        if not numeric and not categorical:
            raise ValueError(
                f"{version.model}@{version.version} names no columns in its signature; drift needs them: "
                "register a version whose input tensors list their columns"
            )
        return cls(tuple(numeric), tuple(categorical))

    def select(self, wanted: Sequence[str]) -> FeatureColumns:
        """Keep the columns of `wanted`, or all if that is empty.

        Raises: ValueError for a name that is not among them.
        """
        unknown = sorted(set(wanted) - set(self.numeric) - set(self.categorical))
        if unknown:
            raise ValueError(f"DriftMonitor.columns names {unknown}, which the model does not read")
        if not wanted:
            return self
        return FeatureColumns(
            tuple(name for name in self.numeric if name in wanted),
            tuple(name for name in self.categorical if name in wanted),
        )


def sample_rows(rows: pa.Table, most: int) -> pa.Table:
    """Take at most `most` of the rows, always the same ones, in their order."""
    if rows.num_rows <= most:
        return rows
    chosen = np.random.default_rng(0).choice(rows.num_rows, most, replace=False)
    return rows.take(pa.array(np.sort(chosen)))


def feature_table(rows: pa.Table, columns: FeatureColumns) -> pa.Table:
    """Turn logged vectors into one column per feature, in order of prediction time, without the shadows' rows.

    A row whose vector has another length belongs to a version with other features, and is left out too.
    """
    seen = rows.filter(pc.invert(rows["shadow"])).sort_by([("predicted_at", "ascending")])
    seen = seen.filter(has_vector_length(seen, columns))
    found: dict[str, Any] = {"predicted_at": seen["predicted_at"]}
    for source, names, kind in (
        ("numeric", columns.numeric, pa.float32()),
        ("categorical", columns.categorical, pa.string()),
    ):
        flat = pc.list_flatten(seen[source]).combine_chunks().cast(kind)
        for place, name in enumerate(names):
            found[name] = flat.take(pa.array(np.arange(place, len(flat), len(names))))
    return pa.table(found)


def has_vector_length(rows: pa.Table, columns: FeatureColumns) -> Any:
    """Mark the rows (rows,) whose vectors have as many values as the version has features."""
    return pc.and_(
        _has_length(rows["numeric"], len(columns.numeric)),
        _has_length(rows["categorical"], len(columns.categorical)),
    )


def _has_length(column: pa.ChunkedArray, length: int) -> Any:
    return pc.equal(pc.fill_null(pc.list_value_length(column), 0), length)


def feature_arrays(rows: pa.Table, columns: FeatureColumns) -> dict[str, Any]:
    """FeatureColumns as arrays (rows,): floats with NaN where missing, and strings with None."""
    numbers = {
        name: pc.fill_null(rows[name].cast(pa.float64(), safe=False), float("nan")).to_numpy()
        for name in columns.numeric
    }
    words = {
        name: np.array(rows[name].cast(pa.string()).to_pylist(), dtype=object) for name in columns.categorical
    }
    return numbers | words
