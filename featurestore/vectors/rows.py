"""Rows of a view with one of its vectors, in memory or mapped from a file, ordered so that the row of a key at a time is found."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.encoding import microseconds, vectors_of
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidDefinition
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.rows import offline_schema
from toque.featurestore.vectors.visibility import Bools, Hashes, Ints, group_codes, precedence_order, spans

Floats = np.ndarray[Any, np.dtype[np.float32]]
PRESENT = "present"
ROWS_AT_ONCE = 65_536


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
        order = precedence_order(view, rows, lambda at: rows.take(pa.array(at)))
        return cls.placed(
            view, field, rows.drop_columns(field), vectors, order, rows.column(field).is_valid()
        )

    @classmethod
    def in_file(
        cls,
        view: FeatureView,
        field: str,
        path: Path,
        tables: Iterable[pa.Table],
        *,
        count: int,
        before: "VectorRows | None" = None,
    ) -> "VectorRows":
        """Order rows whose vectors are written to a file, of which no more is in memory than the system keeps for it.

        tables: of a view's offline schema, one after the other, with `count` rows together. before: rows that come first.
        """
        length = vector_type(view, field).length
        earlier = np.empty((0, length), np.float32) if before is None else before.vectors
        others = [] if before is None else [before.added()]

        def parts() -> Iterator[Floats]:
            for at in range(0, len(earlier), ROWS_AT_ONCE):
                yield earlier[at : at + ROWS_AT_ONCE]
            for each in chain([offline_schema(view).empty_table()], tables):  # there may be no other
                others.append(each.drop_columns(field).append_column(PRESENT, each.column(field).is_valid()))
                yield vectors_of(each.column(field), length)

        write_vectors(path, parts(), (len(earlier) + count, length))
        vectors, rest = np.load(path, mmap_mode="r"), pa.concat_tables(others)
        present, rest = rest.column(PRESENT), rest.drop_columns(PRESENT)
        whole = partial(_whole, view, field, rest, vectors, present.to_numpy())
        return cls.placed(view, field, rest, vectors, precedence_order(view, rest, whole), present)

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
        return _whole(self.view, self.field, self.table, self.vectors, self.present, at, ids=self.ids)

    def added(self) -> pa.Table:
        """Rows without their vectors in the order in which they were added, with a column `PRESENT`."""
        at = self.places()
        return self.table.take(pa.array(at)).append_column(PRESENT, pa.array(self.present[at]))

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


def _whole(
    view: FeatureView,
    field: str,
    rest: pa.Table,
    vectors: Floats,
    present: Bools,
    at: Ints,
    *,
    ids: Ints | None = None,
) -> pa.Table:
    """Put rows at some positions and their vectors together in the view's offline schema. ids: where vectors lie, if elsewhere."""
    flat = pa.array(np.ascontiguousarray(vectors[at if ids is None else ids[at]]).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(
        flat, type=vector_type(view, field).arrow, mask=pa.array(~present[at])
    )
    taken = rest.take(pa.array(at))
    names = [f.name for f in (*view.join_keys, *view.schema)]
    columns = {name: column if name == field else taken.column(name) for name in names}
    return pa.table(columns | {name: taken.column(name) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)})


def write_vectors(path: Path, parts: Iterable[Floats], shape: tuple[int, int]) -> None:
    """Write vectors (rows, length) to a file of numpy's, part by part. Raises: ValueError if the parts have other rows."""
    written = 0
    with path.open("wb") as file:  # not by mapping it: a full disk would end the process
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4").data)
            written += len(part)
    if written != shape[0]:
        raise ValueError(f"{path.name}: {written} vectors were written where {shape[0]} were counted")


def norms_of(vectors: Floats) -> Floats:
    """Euclidean length of each vector."""
    norms = np.empty(len(vectors), dtype=np.float32)
    for at in range(0, len(vectors), ROWS_AT_ONCE):
        part = vectors[at : at + ROWS_AT_ONCE]
        norms[at : at + ROWS_AT_ONCE] = np.sqrt(np.einsum("nd,nd->n", part, part))
    return norms
