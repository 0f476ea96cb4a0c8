"""Two sets of a view's rows searched as one: many that are settled, and few that came since."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from toque.featurestore.definitions.encoding import RowLayout, precedence
from toque.featurestore.vectors.rows import VectorRows
from toque.featurestore.vectors.visibility import NEVER, Bools, Ints


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
