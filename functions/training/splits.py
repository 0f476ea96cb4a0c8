"""Rows of a training set that are held out to stop, to calibrate and to measure; known without torch.

Of a table, or row by row in few passes and little memory: the same rows, but of single rows drawn at random others, about as
many, since a permutation of all rows would have to be held.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.model_formats.matrices import named_column
from toque.functions.training.errors import TrainingDataError
from toque.functions.training_data.order import random_shares

Split = Literal["days", "time", "random"]
TIME_COLUMN = "event_timestamp"
DAY_US = 86_400_000_000
_Mask = npt.NDArray[np.bool_]
Parts = Callable[[], Iterator[pa.Table]]
"""Opens the rows of a training set, in order, with their times; may be called again."""
HeldOut = Callable[[pa.Table, int], npt.NDArray[np.bool_]]
"""Marks the rows (rows,) of a part that are held out; the number is that of its first row."""


def held_out_rows(table: pa.Table, *, valid_fraction: float, by: Split, seed: int, group: str = "") -> _Mask:
    """Mark the rows (rows,) that are held out for validation.

    by: "days" holds out whole days (UTC), drawn with the seed over the whole time range, so that the newest rows are
    learnt from too and no day has rows on both sides; "time" holds out the last part of the time range; "random" holds
    out single rows. group: a column whose values are held out whole: all rows of one go where its first row does.
    Raises: TrainingDataError if either part would be empty, or there is no time to split by.
    """
    if group:
        codes = named_column(table, group).combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        held_out = _SPLITS[by](table.take(first), valid_fraction, np.random.default_rng(seed))[place]
    else:
        held_out = _SPLITS[by](table, valid_fraction, np.random.default_rng(seed))
    valid = int(held_out.sum())
    if valid in {0, table.num_rows}:
        raise TrainingDataError(
            f"splitting {table.num_rows} rows by {by} with valid_fraction={valid_fraction} leaves "
            f"{table.num_rows - valid} rows to train and {valid} to validate: give more rows, another fraction, or split "
            "by 'random'"
        )
    return held_out


def streamed_split(parts: Parts, *, valid_fraction: float, by: Split, seed: int) -> HeldOut:
    """Decide which rows are held out; see `held_out_rows`. Raises: TrainingDataError if there is no time to split by."""
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


def times_us(table: pa.Table) -> npt.NDArray[np.int64]:
    """Times (rows,) of the rows, in microseconds since 1970. Raises: TrainingDataError if there are none."""
    times = named_column(table, TIME_COLUMN).cast(pa.timestamp("us", "UTC"))
    micros: npt.NDArray[np.int64] = times.cast(pa.int64()).to_numpy()
    return micros


def _last_part(table: pa.Table, fraction: float, _: np.random.Generator) -> _Mask:
    times = times_us(table)
    late: _Mask = times > np.quantile(times, 1.0 - fraction, method="lower")
    return late


def _whole_days(table: pa.Table, fraction: float, generator: np.random.Generator) -> _Mask:
    days, day_of_row = np.unique(times_us(table) // DAY_US, return_inverse=True)
    chosen: _Mask = generator.permutation(len(days)) < max(1, round(len(days) * fraction))
    return chosen[day_of_row]


def _some_rows(table: pa.Table, fraction: float, generator: np.random.Generator) -> _Mask:
    chosen: _Mask = generator.permutation(table.num_rows) < max(1, round(table.num_rows * fraction))
    return chosen


_SPLITS = {"time": _last_part, "days": _whole_days, "random": _some_rows}


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
