"""Decomposition of a change of the mean loss: each column in turn splits it into two parts that add up to it.

Rows are put into cells of the column. Mix: other cells became frequent, at the losses that they had before. Within: the same
cells lose more than they did. A change of what is asked shows in the mix of the columns that moved; a model that no longer fits
shows within.

Symbols: w is a cell's share of the rows, l its mean loss, 0 before and 1 after; change = sum (w1 - w0) l0 + sum w1 (l1 - l0).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toque.functions.stats.moments import Floats, as_floats

__all__ = ["CellChange", "ColumnChange", "decompose_change"]

_BINS, _WORDS, _FEW = 8, 20, 30
_UNKNOWN = "other"


@dataclass(frozen=True, slots=True)
class CellChange:
    """Cell of a column, before and after.

    share, loss: before and after; contribution: w1 (l1 - l0), error: its standard error.
    """

    name: str
    share_before: float
    share_after: float
    loss_before: float
    loss_after: float
    contribution: float
    error: float


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """Split of the change by one column.

    mix, within: its parts; error: standard error of the mix. cells: largest first.
    """

    column: str
    mix: float
    within: float
    error: float
    cells: tuple[CellChange, ...]


def decompose_change(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    columns_before: Mapping[str, npt.NDArray[Any]],
    columns_after: Mapping[str, npt.NDArray[Any]],
) -> list[ColumnChange]:
    """Split the change of the mean loss by each column, the largest mix first.

    before: (n,) losses, after: (m,); columns: (n,) and (m,) values each, numbers with NaN where missing or strings with None.
    Numbers are cut at the quantiles of both samples together. A cell that only one sample has takes its loss from the other's
    mean: there is nothing else that it could be held against.
    Raises: ValueError if either sample has fewer than 30 rows, or the columns differ.
    Source: Kitagawa, Components of a difference between two rates, 1955.
    """
    losses = as_floats(before, "before"), as_floats(after, "after")
    if min(map(len, losses)) < _FEW:
        raise ValueError(f"{_FEW} rows of each sample are needed, got {len(losses[0])} and {len(losses[1])}")
    if columns_before.keys() != columns_after.keys():
        differing = sorted(columns_before.keys() ^ columns_after.keys())
        raise ValueError(f"both samples need the same columns; they differ in {differing}")
    found = [_change(name, losses, columns_before[name], columns_after[name]) for name in columns_before]
    return sorted(found, key=lambda one: -one.mix)


def _change(
    name: str, losses: tuple[Floats, Floats], before: npt.NDArray[Any], after: npt.NDArray[Any]
) -> ColumnChange:
    names, cells = _cells(name, np.concatenate([before, after]))
    sides = [(cells[: len(before)], losses[0]), (cells[len(before) :], losses[1])]
    count = [np.bincount(cell, minlength=len(names)).astype(np.float64) for cell, _ in sides]
    total = [np.bincount(cell, loss, minlength=len(names)) for cell, loss in sides]
    squares = [np.bincount(cell, loss**2, minlength=len(names)) for cell, loss in sides]
    share = [each / each.sum() for each in count]
    means = [loss.mean() for _, loss in sides]
    loss0, loss1 = (
        np.where(each > 0, summed / np.maximum(each, 1), mean)
        for each, summed, mean in zip(count, total, means, strict=True)
    )
    mix, within = (share[1] - share[0]) * loss0, share[1] * (loss1 - loss0)
    variance = [
        np.maximum(square / np.maximum(each, 1) - mean**2, 0.0) / np.maximum(each, 1)
        for square, each, mean in zip(squares, count, (loss0, loss1), strict=True)
    ]
    error = share[1] * np.sqrt(variance[0] + variance[1])
    order = np.argsort(-within, kind="stable")
    return ColumnChange(
        name,
        float(mix.sum()),
        float(within.sum()),
        _mix_error(share, loss0, [len(loss) for loss in losses]),
        tuple(
            CellChange(
                names[at],
                float(share[0][at]),
                float(share[1][at]),
                float(loss0[at]),
                float(loss1[at]),
                float(within[at]),
                float(error[at]),
            )
            for at in order
            if count[0][at] and count[1][at]
        ),
    )


def _mix_error(share: Sequence[Floats], loss: Floats, rows: Sequence[int]) -> float:
    """Compute the standard error of the mix: that of the mean of l0 over either side's cells.

    Cells' losses are taken as known.
    """
    spread = [
        float((w * loss**2).sum() - (w * loss).sum() ** 2) / n for w, n in zip(share, rows, strict=True)
    ]
    return float(np.sqrt(max(sum(spread), 0.0)))


def _cells(name: str, values: npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the names of a column's cells, and the cell of each row; the last one is of what is missing."""
    if values.dtype.kind in "biuf":
        return _of_numbers(name, values.astype(np.float64))
    missing = np.array([value is None or value != value for value in values])  # noqa: PLR0124 - NaN
    words, codes = np.unique(np.where(missing, "", values).astype(str), return_inverse=True)
    frequent = np.argsort(-np.bincount(codes[~missing], minlength=len(words)), kind="stable")[:_WORDS]
    place = np.full(len(words), len(frequent))
    place[frequent] = np.arange(len(frequent))
    names = [*(f"{name} = {words[at]}" for at in frequent), f"{name} = {_UNKNOWN}", f"{name} is missing"]
    return names, np.where(missing, len(frequent) + 1, place[codes]).astype(np.int64)


def _of_numbers(name: str, values: Floats) -> tuple[list[str], npt.NDArray[np.int64]]:
    missing = np.isnan(values)
    finite = values[np.isfinite(values)]
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    edges = np.unique(np.quantile(finite, inner)) if len(finite) else np.zeros(0)
    bounds = [f"{edge:.4g}" for edge in edges]
    if not bounds:
        names = [f"{name} of any value"]
    else:
        middle = [f"{low} <= {name} < {high}" for low, high in itertools.pairwise(bounds)]
        names = [f"{name} < {bounds[0]}", *middle, f"{name} >= {bounds[-1]}"]
    cells = np.searchsorted(edges, values, side="right")
    return [*names, f"{name} is missing"], np.where(missing, len(names), cells).astype(np.int64)
