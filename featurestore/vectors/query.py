"""Queries of nearest neighbours: what is asked, and what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.casting.composites import column_of_values
from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.definitions.vector_index import Metric, VectorIndex
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidDefinition, InvalidRows
from toque.featurestore.vectors.rows import Floats, vector_type

MOST = 1_000
"""Neighbours that one search may ask for."""
Embed: TypeAlias = Callable[[str, Sequence[str]], Any]
"""Makes vectors (texts, length) of texts by a registered model: `embed(model, texts)`."""


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
