"""Search for the rows of a view whose vectors are nearest to a query, as of now or of any time before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.vector_index import VectorIndex
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidRows, UnknownDefinition
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.vectors.builds import LoadedIndex
from toque.featurestore.vectors.inverted_lists import OVERSAMPLED
from toque.featurestore.vectors.layers import Layers
from toque.featurestore.vectors.nearest import Found, merged, nearest, ordered
from toque.featurestore.vectors.query import Ask, Embed, Neighbours, key_of, neighbours_of, vector_of
from toque.featurestore.vectors.rows import Floats, VectorRows
from toque.featurestore.vectors.visibility import Bools
from toque.featurestore.vectors.where import Condition, mask_of
from toque.registry.times import epoch_us

EXACT_ROWS = 5_000
"""Rows that are compared as fast as lists are scanned."""


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
