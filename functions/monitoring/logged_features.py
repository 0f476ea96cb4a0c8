"""Logged feature vectors as tables and arrays: the columns that a version reads, and samples of its rows.

Tensors, such as images, are seen by figures, since no pixel means anything by itself. Mean, standard deviation and norm of each
row's values show another brightness, contrast or scale; projections on a few directions, drawn once for a model and tensor, show what
keeps those, such as other objects. Source: Johnson and Lindenstrauss, Extensions of Lipschitz mappings into a Hilbert space, 1984.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.model_formats.matrices import tensor_array
from toque.registry import ModelVersion

Floats = npt.NDArray[np.float64]
PROJECTIONS = 4
_FIGURES = ("mean", "std", "norm", *(f"projection {place}" for place in range(1, PROJECTIONS + 1)))


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Names of the features of a version, in the order in which they are logged.

    tensors: place and size of each in the logged numbers, which hold the tensors' values beside the columns' (numeric_places, in the
    order of `numeric`; empty: one after the other). model: whose tensors they are.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    tensors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numeric_places: tuple[int, ...] = ()
    model: str = ""

    @property
    def width(self) -> int:
        """Number of values that are logged as numbers."""
        return len(self.numeric) + sum(size for _, size in self.tensors.values())

    @property
    def summaries(self) -> tuple[str, ...]:
        """Names of the figures by which the tensors are watched."""
        return tuple(name for tensor in self.tensors for name in summary_names(tensor))

    @classmethod
    def of(cls, version: ModelVersion) -> FeatureColumns:
        """Read the columns from a version's signature. Raises: ValueError if that names no columns."""
        specs = version.signature.inputs if version.signature is not None else []
        categorical = [name for spec in specs if spec.datatype == "BYTES" for name in spec.columns or []]
        numeric: list[str] = []
        places: list[int] = []
        tensors: dict[str, tuple[int, int]] = {}
        place = 0
        for spec in specs:
            if spec.datatype == "BYTES":
                continue
            size = len(spec.columns) if spec.columns else math.prod(spec.shape[1:])
            if spec.columns:
                numeric += spec.columns
                places += range(place, place + size)
            elif size > 0 and len(spec.shape) > 1:
                tensors[spec.name] = (place, size)
            place += max(size, 0)  # of an open size: nothing is known of its place
        if not numeric and not categorical and not tensors:
            raise ValueError(
                f"{version.model}@{version.version} names no columns in its signature; drift needs them: "
                "register a version whose input tensors list their columns, or have a size"
            )
        return cls(tuple(numeric), tuple(categorical), tensors, tuple(places), version.model)

    def select(self, wanted: Sequence[str]) -> FeatureColumns:
        """Keep the columns of `wanted`, or all if that is empty.

        Raises: ValueError for a name that is not among them.
        """
        unknown = sorted(set(wanted) - set(self.numeric) - set(self.categorical) - set(self.tensors))
        if unknown:
            raise ValueError(f"DriftMonitor.columns names {unknown}, which the model does not read")
        if not wanted:
            return self
        return FeatureColumns(
            tuple(name for name in self.numeric if name in wanted),
            tuple(name for name in self.categorical if name in wanted),
            {name: place for name, place in self.tensors.items() if name in wanted},
            model=self.model,
        )


def sample_rows(rows: pa.Table, most: int) -> pa.Table:
    """Take at most `most` of the rows, always the same ones, in their order."""
    if rows.num_rows <= most:
        return rows
    chosen = np.random.default_rng(0).choice(rows.num_rows, most, replace=False)
    return rows.take(pa.array(np.sort(chosen)))


def feature_table(rows: pa.Table, columns: FeatureColumns) -> pa.Table:
    """Turn logged vectors into one column per feature, and per figure of a tensor, in order of prediction time, without shadows.

    A row whose vector has another length belongs to a version with other features, and is left out too.
    """
    seen = rows.filter(pc.invert(rows["shadow"])).sort_by([("predicted_at", "ascending")])
    seen = seen.filter(has_vector_length(seen, columns))
    found: dict[str, Any] = {"predicted_at": seen["predicted_at"]}
    numbers = columns.numeric_places or tuple(range(len(columns.numeric)))
    for source, names, places, width, kind in (
        ("numeric", columns.numeric, numbers, columns.width, pa.float32()),
        (
            "categorical",
            columns.categorical,
            range(len(columns.categorical)),
            len(columns.categorical),
            pa.string(),
        ),
    ):
        flat = pc.list_flatten(seen[source]).combine_chunks().cast(kind)
        for name, place in zip(names, places, strict=True):
            found[name] = flat.take(pa.array(np.arange(place, len(flat), width)))
        if source == "numeric" and columns.tensors:
            matrix = flat.to_numpy(zero_copy_only=False).reshape(seen.num_rows, width)
            for name, (start, size) in columns.tensors.items():
                found |= summaries(columns.model, name, matrix[:, start : start + size])
    return pa.table(found)


def with_summaries(rows: pa.Table, columns: FeatureColumns) -> pa.Table:
    """Add the figures of the tensors to rows of a training set, which hold each tensor as a column of lists."""
    for name in columns.tensors:
        if name not in rows.column_names:
            raise ValueError(
                f"the training set has no column {name!r}; drift of that tensor is held against it"
            )
        for figure, values in summaries(columns.model, name, tensor_array(rows, name)).items():
            rows = rows.append_column(figure, pa.array(values))
    return rows


def has_vector_length(rows: pa.Table, columns: FeatureColumns) -> Any:
    """Mark the rows (rows,) whose vectors have as many values as the version has features."""
    return pc.and_(
        _has_length(rows["numeric"], columns.width),
        _has_length(rows["categorical"], len(columns.categorical)),
    )


def _has_length(column: pa.ChunkedArray, length: int) -> Any:
    return pc.equal(pc.fill_null(pc.list_value_length(column), 0), length)


def feature_arrays(rows: pa.Table, columns: FeatureColumns) -> dict[str, Any]:
    """Features as arrays (rows,): floats with NaN where missing, and strings with None."""
    numbers = {
        name: pc.fill_null(rows[name].cast(pa.float64(), safe=False), float("nan")).to_numpy()
        for name in columns.numeric
    }
    words = {
        name: np.array(rows[name].cast(pa.string()).to_pylist(), dtype=object) for name in columns.categorical
    }
    return numbers | words


def summary_names(tensor: str) -> tuple[str, ...]:
    """Names of the figures of a tensor, as drift findings and alarms name them."""
    return tuple(f"{tensor} {figure}" for figure in _FIGURES)


def summaries(model: str, tensor: str, values: npt.NDArray[np.floating]) -> dict[str, Floats]:
    """Compute the figures (rows,) of a tensor's values (rows, size) by name; NaN for a row with a missing value.

    model: whose name, with the tensor's, is the seed of the directions.
    """
    held = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    size = held.shape[1]
    seed = int.from_bytes(hashlib.sha256(f"{model}/{tensor}".encode()).digest()[:8], "big")
    directions = np.random.default_rng(seed).normal(size=(size, PROJECTIONS)) / np.sqrt(size)
    figures = (held.mean(axis=1), held.std(axis=1), np.linalg.norm(held, axis=1), *(held @ directions).T)
    return dict(zip(summary_names(tensor), figures, strict=True))
