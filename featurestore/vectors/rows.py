"""Rows of a view with one of its vectors, in memory or mapped from a file, ordered so that the row of a key at a time is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.definitions.dtypes import Vector
from featurestore.definitions.encoding import microseconds, vectors_of
from featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from featurestore.definitions.views import FeatureView
from featurestore.errors import InvalidDefinition
from featurestore.offline.partitioning import key_hashes
from featurestore.vectors.visibility import Bools, Hashes, Ints, group_codes, precedence_order, spans

Floats = np.ndarray[Any, np.dtype[np.float32]]
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class VectorRows:
    """Rows in the order of `precedence_order`, of vectors that lie in the order in which they were added.

    table: all columns but the vector. vectors: (rows, length), zeros where null, and norms: the length of each, both as they
    were added. ids: where each row's vector lies. present: which rows have a vector. hashes: of the rows' keys, ascending.
    since, until: span in which each is visible, in microseconds.
    """

    view: FeatureView
    field: str
    table: pa.Table
    vectors: Floats
    norms: Floats
    ids: Ints
    present: Bools
    hashes: Hashes
    since: Ints
    until: Ints

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def of(cls, view: FeatureView, field: str, rows: pa.Table) -> "VectorRows":
        """Order rows of a view's offline schema."""
        vectors = vectors_of(rows.column(field), vector_type(view, field).length)
        order = precedence_order(view, rows)
        return cls.placed(
            view, field, rows.drop_columns(field), vectors, order, rows.column(field).is_valid()
        )

    @classmethod
    def placed(
        cls,
        view: FeatureView,
        field: str,
        rows: pa.Table,
        vectors: Floats,
        order: Ints,
        present: pa.ChunkedArray,
    ) -> "VectorRows":
        """Place rows without their vectors, both in the order in which they were added, by an order from `precedence_order`."""
        taken = rows.take(pa.array(order)).combine_chunks()
        keys = [key.name for key in view.join_keys]
        event, created = (microseconds(taken.column(name)) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP))
        since, until = spans(group_codes(taken, keys), event, created, ttl=view.ttl)
        there, hashes = present.to_numpy()[order], key_hashes(taken, keys)
        return cls(view, field, taken, vectors, norms_of(vectors), order, there, hashes, since, until)

    def visible(self, at_us: int) -> Bools:
        """Tell which rows are the row of their key at a time, those without a vector among them."""
        return (self.since <= at_us) & (at_us < self.until)

    def taken(self, positions: Sequence[int] | Ints) -> pa.Table:
        """Take some rows in the view's offline schema, as `of` takes them."""
        at = np.asarray(positions, dtype=np.int64)
        dtype = vector_type(self.view, self.field)
        flat = pa.array(np.ascontiguousarray(self.vectors[self.ids[at]]).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=dtype.arrow, mask=pa.array(~self.present[at]))
        rest = self.table.take(pa.array(at))
        names = [f.name for f in (*self.view.join_keys, *self.view.schema)]
        columns = {name: column if name == self.field else rest.column(name) for name in names}
        times = {name: rest.column(name) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)}
        return pa.table(columns | times)

    def places(self) -> Ints:
        """Position among the rows of each vector, in the order in which vectors were added."""
        places = np.empty(len(self), dtype=np.int64)
        places[self.ids] = np.arange(len(self))
        return places

    def keys_at(self, positions: Sequence[int] | Ints) -> list[tuple[Any, ...]]:
        """Keys of some rows, in the order of the view's join keys."""
        names = [key.name for key in self.view.join_keys]
        taken = self.table.select(names).take(pa.array(positions, pa.int64()))
        columns = [taken.column(name).to_pylist() for name in names]
        return list(zip(*columns, strict=True)) if columns else [()] * len(positions)


def vector_type(view: FeatureView, field: str) -> Vector:
    """Type of a vector field. Raises: InvalidDefinition if the view has no such field, or it is no vector."""
    found = next((f for f in view.schema if f.name == field), None)
    if found is None or not isinstance(found.dtype, Vector) or not found.dtype.finite:
        vectors = [f.name for f in view.schema if isinstance(f.dtype, Vector) and f.dtype.finite]
        raise InvalidDefinition(
            f"feature view {view.name!r}: {field!r} is no vector of finite numbers; its vectors are {vectors}"
        )
    return found.dtype


def norms_of(vectors: Floats) -> Floats:
    """Euclidean length of each vector."""
    norms = np.empty(len(vectors), dtype=np.float32)
    for at in range(0, len(vectors), _ROWS_AT_ONCE):
        part = vectors[at : at + _ROWS_AT_ONCE]
        norms[at : at + _ROWS_AT_ONCE] = np.sqrt(np.einsum("nd,nd->n", part, part))
    return norms
