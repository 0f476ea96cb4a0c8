"""Rows of a view with one of its vectors, in memory or mapped from a file, ordered to find a key's row at a time.

A row exists from the later of its event and created time. It is visible until a row of its key that takes precedence
(later by event, then created, then content) exists, and at most until its ttl has passed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.encoding import (
    HEADER_BYTES,
    RowLayout,
    microseconds,
    precedence,
    vectors_of,
)
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidDefinition
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.rows import offline_schema
from toque.registry.times import MICROSECOND

Ints = np.ndarray[Any, np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

PRESENT = "present"
ROWS_AT_ONCE = 65_536
NEVER = np.iinfo(np.int64).max
"""End of a span that has none."""


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


@dataclass(frozen=True, slots=True)
class Layers:
    """Rows that were there when they were last read as a whole, and the tail of those that came since."""

    base: VectorRows
    tail: VectorRows
    _last: list[tuple[int, int, tuple[Bools, Bools]]] = field(default_factory=list, compare=False, repr=False)

    def visible(self, at_us: int) -> tuple[Bools, Bools]:
        """Tell which rows of base and tail are the row of their key at a time, among the rows of both, and have a vector.

        The same arrays until others are visible; not to be changed.
        """
        for start, end, masks in self._last[:1]:
            if start <= at_us < end:
                return masks
        base, tail = self._visible(at_us)
        masks = base & self.base.present, tail & self.tail.present
        self._last[:] = [(at_us, min(_next_change(self.base, at_us), _next_change(self.tail, at_us)), masks)]
        return masks

    def _visible(self, at_us: int) -> tuple[Bools, Bools]:
        base, tail = self.base.visible(at_us), self.tail.visible(at_us)
        newer = np.flatnonzero(tail)
        if not len(newer) or not len(self.base):
            return base, tail
        pairs = self._rivals(newer, base)
        if len(pairs):
            wins = self._tail_wins(pairs)
            base[pairs[wins, 0]] = False
            tail[pairs[~wins, 1]] = False
        return base, tail

    def _rivals(self, newer: Ints, visible: Bools) -> Ints:
        """Pairs of a visible base row and a tail row of one key, (pairs, 2)."""
        hashes = self.tail.hashes[newer]
        first = np.searchsorted(self.base.hashes, hashes, side="left")
        last = np.searchsorted(self.base.hashes, hashes, side="right")
        counts = last - first
        if not counts.any():
            return np.empty((0, 2), dtype=np.int64)
        rivals = np.repeat(newer, counts)
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        candidates = starts + np.arange(counts.sum())
        there = visible[candidates]
        candidates, rivals = candidates[there], rivals[there]
        same = [
            a == b for a, b in zip(self.base.keys_at(candidates), self.tail.keys_at(rivals), strict=True)
        ]  # hashes of different keys may be equal
        return np.stack([candidates, rivals], axis=1)[np.array(same, dtype=np.bool_)].astype(np.int64)

    def _tail_wins(self, pairs: Ints) -> Bools:
        """Tell for each pair whether the tail's row takes precedence."""
        layout = RowLayout(self.base.view.schema)
        older = _packed(layout, self.base, pairs[:, 0].tolist())
        newer = _packed(layout, self.tail, pairs[:, 1].tolist())
        return np.array(
            [precedence(b) > precedence(a) for a, b in zip(older, newer, strict=True)], dtype=np.bool_
        )


def _next_change(rows: VectorRows, at_us: int) -> int:
    """First moment after a time at which another set of rows is visible."""
    ends = (moments[moments > at_us].min(initial=NEVER) for moments in (rows.since, rows.until))
    return int(min(ends))


def _packed(layout: RowLayout, rows: VectorRows, at: Sequence[int]) -> list[bytes]:
    return layout.encode(rows.taken(at))


def group_codes(rows: pa.Table, keys: Sequence[str]) -> Ints:
    """Number the distinct keys of rows: equal numbers for equal keys."""
    codes = np.zeros(rows.num_rows, dtype=np.int64)
    for key in keys:
        column = rows.column(key).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            return codes  # no rows
        encoded = column.dictionary_encode()
        part = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        _, codes = np.unique(codes * (len(encoded.dictionary) + 1) + part, return_inverse=True)
    return codes


def precedence_order(view: FeatureView, rows: pa.Table, whole: Callable[[Ints], pa.Table]) -> Ints:
    """Order rows by the hash of their key, then key, then precedence, the row that wins last; returns their positions.

    rows: keys and times at the least. whole: takes rows at some positions with all their columns.
    """
    keys = [key.name for key in view.join_keys]
    hashes, codes = key_hashes(rows, keys), group_codes(rows, keys)
    event = microseconds(rows.column(EVENT_TIMESTAMP))
    created = microseconds(rows.column(CREATED_TIMESTAMP))
    order = np.lexsort((created, event, codes, hashes)).astype(np.int64)
    same = np.zeros(len(order), dtype=np.bool_)
    same[1:] = (np.diff(codes[order]) == 0) & (np.diff(event[order]) == 0) & (np.diff(created[order]) == 0)
    if same.any():
        order = _by_content(view, whole, order, same)
    return order


def _by_content(view: FeatureView, whole: Callable[[Ints], pa.Table], order: Ints, same: Bools) -> Ints:
    """Order runs of rows that share key and times by their packed bytes. same: whether a row is in the run of the one before."""
    tied = same.copy()
    tied[:-1] |= same[1:]
    at = np.flatnonzero(tied)
    run = np.cumsum(~same)[at]
    packed = RowLayout(view.schema).encode(whole(order[at]))
    content = [value[HEADER_BYTES:] for value in packed]
    within = sorted(range(len(at)), key=lambda i: (run[i], content[i]))
    order[at] = order[at][np.array(within)]
    return order


def spans(codes: Ints, event: Ints, created: Ints, *, ttl: timedelta | None) -> tuple[Ints, Ints]:
    """First microsecond in which each row is visible, and the first in which it no longer is; none if they are equal or crossed.

    codes, event, created: of rows in the order of `precedence_order`.
    """
    since = np.maximum(event, created)
    until = np.full(len(since), NEVER, dtype=np.int64)
    if len(since) > 1:
        moments, rank = np.unique(since, return_inverse=True)
        group = np.concatenate([[0], np.cumsum(np.diff(codes) != 0)]).astype(np.int64)
        # The earliest from each row on: a later key counts more than any moment, so that it is one of the row's own key.
        earliest = np.minimum.accumulate((group * len(moments) + rank)[::-1])[::-1]
        followed = group[1:] == group[:-1]
        until[:-1] = np.where(followed, moments[earliest[1:] % len(moments)], NEVER)
    if ttl is not None:
        until = np.minimum(until, event + (ttl // MICROSECOND + 1))
    return since, until
