"""Rows of a training set that are held out to stop, to calibrate and to measure; known without torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.model_formats.matrices import named_column
from toque.functions.training.errors import TrainingDataError

Split = Literal["days", "time", "random"]
TIME_COLUMN = "event_timestamp"
DAY_US = 86_400_000_000
_Mask = npt.NDArray[np.bool_]


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


def times_us(table: pa.Table) -> npt.NDArray[np.int64]:
    """Times (rows,) of the rows, in microseconds since 1970. Raises: TrainingDataError if there are none."""
    times = named_column(table, TIME_COLUMN).cast(pa.timestamp("us", "UTC"))
    micros: npt.NDArray[np.int64] = times.cast(pa.int64()).to_numpy()
    return micros
