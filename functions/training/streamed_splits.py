"""Rows of a training set that are held out, decided row by row in few passes: the same as `splits` chooses, in little memory.

Of single rows drawn at random others are chosen than there, since a permutation of all rows would have to be held; about as many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.training.splits import DAY_US, Split, times_us
from toque.functions.training_data.order import random_shares

Parts = Callable[[], Iterator[pa.Table]]
"""Opens the rows of a training set, in order, with their times; may be called again."""
HeldOut = Callable[[pa.Table, int], npt.NDArray[np.bool_]]
"""Marks the rows (rows,) of a part that are held out; the number is that of its first row."""


def streamed_split(parts: Parts, *, valid_fraction: float, by: Split, seed: int) -> HeldOut:
    """Decide which rows are held out; see `splits.held_out_rows`. Raises: TrainingDataError if there is no time to split by."""
    if by == "random":
        return lambda rows, first: (
            random_shares(np.arange(first, first + rows.num_rows), seed) < valid_fraction
        )
    counts = Counter[int]()
    for rows in parts():
        days, count = np.unique(times_us(rows) // DAY_US, return_counts=True)
        counts.update(dict(zip(days.tolist(), count.tolist(), strict=True)))
    if not counts:
        return lambda rows, _: np.zeros(rows.num_rows, dtype=np.bool_)
    if by == "days":
        days = np.array(sorted(counts))
        drawn = np.random.default_rng(seed).permutation(len(days))
        held = days[drawn < max(1, round(len(days) * valid_fraction))]
        return lambda rows, _: np.isin(times_us(rows) // DAY_US, held)
    last = _quantile(parts, counts, 1.0 - valid_fraction)
    return lambda rows, _: times_us(rows) > last


def _quantile(parts: Parts, counts: Counter[int], share: float) -> int:
    """Time (us) below or at which a share of the rows is, as `numpy.quantile` has it with the method "lower"."""
    place = math.floor((sum(counts.values()) - 1) * share)
    for day in sorted(counts):
        if place < counts[day]:
            break
        place -= counts[day]
    times = (times_us(rows) for rows in parts())
    of_day = np.concatenate([each[each // DAY_US == day] for each in times])
    return int(np.partition(of_day, place)[place])
