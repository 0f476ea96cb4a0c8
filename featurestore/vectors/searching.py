"""Search for the rows of a view whose vectors are nearest to a query, as of now or of any time before.

Filters are by the other columns; a row must meet all, and None asks for a null:
`{"lang": "de", "year": {"ge": 2020, "lt": 2024}, "kind": ["a", "b"], "gone": None}`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting import cast_column, column_of_values
from toque.featurestore.definitions.dtypes import Decimal, DType, Vector
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field, Metric, VectorIndex
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidDefinition, InvalidRows, UnknownDefinition
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.vectors.builds import LoadedIndex
from toque.featurestore.vectors.nearest import OVERSAMPLED, Found, merged, nearest, ordered
from toque.featurestore.vectors.rows import Bools, Floats, Layers, VectorRows, vector_type
from toque.registry.times import epoch_us

MOST = 1_000
"""Neighbours that one search may ask for."""
EXACT_ROWS = 5_000
"""Rows that are compared as fast as lists are scanned."""
Embed: TypeAlias = Callable[[str, Sequence[str]], Any]
"""Makes vectors (texts, length) of texts by a registered model: `embed(model, texts)`."""
Where: TypeAlias = Mapping[str, Any]

_Mask = np.ndarray[Any, np.dtype[np.bool_]]
_COMPARE: dict[str, Callable[..., Any]] = {
    "ge": pc.greater_equal,
    "gt": pc.greater,
    "le": pc.less_equal,
    "lt": pc.less,
    "ne": pc.not_equal,
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row that was found: its key, its distance from the query, and its features without the vector."""

    key: dict[str, Any]
    distance: float
    features: dict[str, Any]
    event_timestamp: datetime


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows found nearest to a query, nearest first.

    at: time as of which; exact: whether every row was compared; table_version: offline version that was searched, None
    without a table; index: number of the index that was used, if one was, and recall: share of the ten nearest that it was
    measured to find.
    """

    view: str
    field: str
    metric: Metric
    at: datetime
    exact: bool
    table_version: int | None
    index: int | None
    recall: float | None
    found: tuple[Neighbour, ...]

    @property
    def keys(self) -> list[dict[str, Any]]:
        """Keys that were found, nearest first."""
        return [each.key for each in self.found]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is looked for: exactly one of a vector, the key of a stored row, or a text."""

    vector: Any = None
    key: Any = None
    text: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("vector", "key", "text") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRows(f"a search is by one of vector, key and text, got {given or 'none'}; give one")


def index_of(view: FeatureView, field: str | None) -> VectorIndex:
    """Find how a field is searched; a field without a declared index is compared by cosine.

    field: by default the only vector, or the only one with an index.
    Raises: InvalidDefinition.
    """
    vectors = [f.name for f in view.schema if isinstance(f.dtype, Vector)]
    declared = {index.field: index for index in view.indexes}
    if field is None:
        choices = list(declared) or vectors
        if len(choices) != 1:
            raise InvalidDefinition(
                f"feature view {view.name!r} has the vectors {vectors}; name the field that is to be searched"
            )
        field = choices[0]
    vector_type(view, field)
    return declared.get(field) or VectorIndex(field)


def checked_k(k: int) -> int:
    """Check how many neighbours are asked for. Raises: InvalidRows."""
    if not 1 <= k <= MOST:
        raise InvalidRows(f"k={k}: a search finds 1 to {MOST} neighbours")
    return k


def vector_of(view: FeatureView, index: VectorIndex, given: Any) -> Floats:
    """Check and convert the vector of a query. Raises: InvalidRows."""
    dtype = vector_type(view, index.field)
    where = f"feature view {view.name!r}: query"
    try:
        column = pa.chunked_array([column_of_values([given])])
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise InvalidRows(f"{where}: {index.field!r} takes {dtype}, got {given!r:.80}: {error}") from error
    typed = cast_column(where, Field(index.field, dtype), column)
    vector = np.array(typed[0].as_py(), dtype=np.float32)
    if index.metric is Metric.COSINE and not vector.any():
        raise InvalidRows(f"{where}: {index.field!r} is zero, which has no angle; give another vector")
    return vector


def key_of(view: FeatureView, given: Any) -> tuple[Any, ...]:
    """Check the key of a stored row: a mapping of its join keys, or a value where there is one. Raises: InvalidRows."""
    names = [key.name for key in view.join_keys]
    if not isinstance(given, Mapping):
        given = {names[0]: given} if len(names) == 1 else {}
    if sorted(given) != sorted(names):
        raise InvalidRows(f"feature view {view.name!r}: a key has {names}, got {sorted(map(str, given))}")
    values = []
    for key in view.join_keys:
        where = f"feature view {view.name!r}: key"
        typed = cast_column(where, key, pa.chunked_array([pa.array([given[key.name]])]))
        if typed.null_count:
            raise InvalidRows(f"{where} {key.name!r} is null; give its value")
        values.append(typed[0].as_py())
    return tuple(values)


def neighbours_of(view: FeatureView, found: Sequence[tuple[Any, int, float]]) -> tuple[Neighbour, ...]:
    """Rows that were found, with their columns. found: set of rows, position and distance of each."""
    names = [key.name for key in view.join_keys]
    made = []
    for rows, position, distance in found:
        row = rows.table.slice(position, 1).to_pylist(maps_as_pydicts="strict")[0]
        features = {f.name: row[f.name] for f in view.schema if f.name in row}
        made.append(Neighbour({name: row[name] for name in names}, distance, features, row[EVENT_TIMESTAMP]))
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition that rows meet on one column. compare: `eq`, `in`, or a key of a range; values: Arrow values of the column's type."""

    column: str
    compare: str
    values: pa.Array

    def mask(self, rows: pa.Table) -> _Mask:
        """Tell which rows meet the condition; a null meets only the one that asks for it."""
        column = rows.column(self.column)
        if self.compare == "eq" and self.values.null_count:
            met = column.is_null()
        elif self.compare in {"eq", "in"}:
            met = pc.is_in(column, value_set=self.values, skip_nulls=True)
        else:
            met = pc.fill_null(_COMPARE[self.compare](column, self.values[0]), False)
        mask: _Mask = met.to_numpy()
        return mask


def conditions_of(view: FeatureView, where: Where) -> tuple[Condition, ...]:
    """Check a filter and type its values by the view.

    Raises: UnknownDefinition for a column that the view has not; InvalidRows for a value that does not fit.
    """
    fields = {f.name: f for f in (*view.join_keys, *view.schema)}
    found: list[Condition] = []
    for name, wanted in where.items():
        if name not in fields:
            raise UnknownDefinition(
                f"feature view {view.name!r}: where names {name!r}; it has {list(fields)}"
            )
        field = fields[name]
        if not isinstance(field.dtype, DType | Decimal):
            raise InvalidRows(
                f"feature view {view.name!r}: where takes scalars and decimals, and {name!r} is {field.dtype}; leave it out"
            )
        found += _of_column(f"feature view {view.name!r}: where", field, wanted)
    return tuple(found)


def mask_of(conditions: Sequence[Condition], rows: pa.Table) -> _Mask:
    """Tell which rows meet all conditions."""
    mask = np.ones(rows.num_rows, dtype=np.bool_)
    for condition in conditions:
        mask &= condition.mask(rows)
    return mask


def _of_column(where: str, field: Field, wanted: Any) -> list[Condition]:
    if isinstance(wanted, Mapping):
        unknown = sorted(set(wanted) - _COMPARE.keys())
        if unknown or not wanted:
            raise InvalidRows(
                f"{where}: column {field.name!r} compares by {unknown or 'nothing'}; use {', '.join(_COMPARE)}"
            )
        bounds = [Condition(field.name, how, _typed(where, field, [value])) for how, value in wanted.items()]
        for bound in bounds:
            if bound.values.null_count:
                raise InvalidRows(
                    f"{where}: column {field.name!r}: {bound.compare} null finds no row; leave it out"
                )
        return bounds
    if isinstance(wanted, list | tuple | set | frozenset):
        return [Condition(field.name, "in", _typed(where, field, list(wanted)))]
    return [Condition(field.name, "eq", _typed(where, field, [wanted]))]


def _typed(where: str, field: Field, values: Sequence[Any]) -> pa.Array:
    try:
        given = pa.chunked_array([column_of_values(values)])
    except (pa.ArrowException, OverflowError) as error:
        msg = f"{where}: column {field.name!r} is {field.dtype}, got {values!r:.80}: {error}; give values of its type"
        raise InvalidRows(msg) from error
    typed = cast_column(where, field, given).combine_chunks()
    return typed if isinstance(typed, pa.Array) else pa.array([], field.dtype.arrow)


@dataclass(frozen=True, slots=True)
class Searched:
    """A view's vector field as it is searched.

    layers: its rows; table_version: of the offline table that they are of. loaded: the index over the base that may be used.
    """

    view: FeatureView
    index: VectorIndex
    layers: Layers
    table_version: int | None
    loaded: LoadedIndex | None = None

    def search(
        self, ask: Ask, *, k: int, where: Sequence[Condition], at: datetime, embed: Embed | None
    ) -> Neighbours:
        """Find the `k` rows nearest to what is asked that meet the conditions.

        at: rows count as they were known then. embed: makes the vector of a text.
        Raises: InvalidRows, UnknownDefinition (a key that has no vector then; a text without a model).
        """
        visible = self.layers.visible(epoch_us(at))
        query, itself = self._query(ask, visible, embed)
        parts, exact = [], True
        for rows, among in zip((self.layers.base, self.layers.tail), visible, strict=True):
            chosen = among & mask_of(where, rows.table) if where else among
            if itself is not None and itself[0] is rows:
                chosen = chosen.copy()
                chosen[itself[1]] = False
            found = None if rows is not self.layers.base else self._by_index(query, chosen, k=k, at=at)
            exact &= found is None
            parts.append((rows, found or nearest(rows, query, self.index.metric, among=chosen, k=k)))
        return Neighbours(
            view=self.view.name,
            field=self.index.field,
            metric=self.index.metric,
            at=at,
            exact=exact,
            table_version=self.table_version,
            index=None if exact or self.loaded is None else self.loaded.build.number,
            recall=None if exact or self.loaded is None else self.loaded.build.recall,
            found=neighbours_of(self.view, merged(parts, k=k)),
        )

    def _by_index(self, query: Floats, chosen: Bools, *, k: int, at: datetime) -> Found | None:
        """Find the nearest by the index; None where it does not know the time, or comparing all is as fast or needed."""
        loaded = self.loaded
        if loaded is None or at < loaded.build.built_at:
            return None
        allowed = loaded.allowed(chosen)
        count = int(np.count_nonzero(allowed))
        if count <= EXACT_ROWS:
            return None
        some = allowed if count < len(allowed) else None
        probes = loaded.build.probes * len(allowed) // count  # the nearest of fewer rows lie farther away
        rows = loaded.lists.search(query, k=OVERSAMPLED * k, allowed=some, probes=probes)
        at_rows = loaded.places[rows]
        found = ordered(loaded.rows, query, self.index.metric, at_rows, k=k)
        return found if len(found.positions) == k else None

    def _query(
        self, ask: Ask, visible: tuple[Bools, Bools], embed: Embed | None
    ) -> tuple[Floats, tuple[VectorRows, int] | None]:
        """Vector that is asked for, and the row that it is of, which is not its own neighbour."""
        if ask.key is not None:
            rows, position = self._row_of(key_of(self.view, ask.key), visible)
            return rows.vectors[rows.ids[position]], (rows, position)
        if ask.text is not None:
            return vector_of(self.view, self.index, self._embedded(ask.text, embed)), None
        return vector_of(self.view, self.index, ask.vector), None

    def _row_of(self, key: tuple[Any, ...], visible: tuple[Bools, Bools]) -> tuple[VectorRows, int]:
        for rows, among in zip((self.layers.base, self.layers.tail), visible, strict=True):
            for position in positions_of(rows, key):
                if among[position]:
                    return rows, position
        raise UnknownDefinition(
            f"feature view {self.view.name!r} has no vector {self.index.field!r} of {key} at that time; "
            "write one, or search by vector"
        )

    def _embedded(self, text: str, embed: Embed | None) -> Any:
        model = self.index.text_model
        where = f"feature view {self.view.name!r}: search by text"
        if not model:
            raise InvalidRows(f"{where} needs VectorIndex({self.index.field!r}, text_model=…); declare one")
        if embed is None:
            raise InvalidRows(f"{where} needs a way to ask model {model!r}; pass embed=…")
        made = np.asarray(embed(model, [text]))
        if made.ndim != 2 or len(made) != 1:  # noqa: PLR2004  # one row of numbers
            raise InvalidRows(
                f"{where}: model {model!r} answered with shape {made.shape}, expected (1, length)"
            )
        return made[0]


def positions_of(rows: VectorRows, key: tuple[Any, ...]) -> list[int]:
    """Positions of all rows of a key."""
    fields = rows.view.join_keys
    asked = pa.table({f.name: pa.array([value], f.dtype.arrow) for f, value in zip(fields, key, strict=True)})
    if not fields:
        return list(range(len(rows)))
    wanted = key_hashes(asked, [f.name for f in fields])[0]
    first, last = (int(np.searchsorted(rows.hashes, wanted, side=side)) for side in ("left", "right"))
    found = range(first, last)
    return [position for position, each in zip(found, rows.keys_at(found), strict=True) if each == key]
