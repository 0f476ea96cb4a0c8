"""Preprocessing of a row before the network, as a torch module that is exported with it, and tables as tensors.

Numbers are scaled robustly (median and interquartile range of the training rows), squashed softly towards ±3 and
coded piecewise linearly over quantile bins; a missing or infinite number becomes the median and sets its flag.
Categories arrive as 64-bit hashes and are looked up in one sorted vocabulary a column; categories that are too rare in
training share the column's row 0, so that the network learns what "unknown" means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from toque.functions.model_formats.matrices import (
    binary_labels,
    category_matrix,
    class_labels,
    number_labels,
    numeric_matrix,
)
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.splits import TIME_COLUMN, Split, held_out_rows
from toque.functions.training.tabular.settings import Columns, Task
from toque.kernels.encoder import piecewise_linear
from toque.registry import Table, TableSnapshot

_PADDING = np.iinfo(np.int64).max  # behind every real hash, so a padded vocabulary stays sorted
_NORMAL_IQR = 1.349  # the interquartile range of a standard normal
_QUANTILE_ROWS = 200_000  # more rows do not change a quantile noticeably


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Encoded rows, as the network takes them.

    numeric: (rows, features) float32, scaled, no NaN; missing: (rows, features) float32 flags;
    category: (rows, columns) int64 row numbers in the joint embedding table.
    """

    numeric: Tensor
    missing: Tensor
    category: Tensor

    def __len__(self) -> int:
        return self.numeric.shape[0]

    def take(self, rows: Tensor) -> EncodedRows:
        """Select the given rows, in the given order."""
        return EncodedRows(self.numeric[rows], self.missing[rows], self.category[rows])

    def prefetch(self, rows: Tensor) -> None:
        """Do nothing, since the rows are in memory already."""

    def narrow(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name in the narrow types in which rows are stored."""
        return {
            "numeric": self.numeric.numpy(),
            "missing": self.missing.to(torch.uint8).numpy(),
            "category": self.category.to(torch.int32).numpy(),
        }


class Preprocessing(nn.Module):
    """Scales numbers, flags missing ones and looks categories up; holds statistics, no trained weights.

    center, inverse_scale: (features,); vocabulary: (columns, size) int64, each row sorted;
    left, inverse_width: (features, bins) of the piecewise linear code, in scaled units (zero width: unused bin).
    """

    center: Tensor
    inverse_scale: Tensor
    left: Tensor
    inverse_width: Tensor
    vocabulary: Tensor
    offset: Tensor

    def __init__(
        self, center: Tensor, inverse_scale: Tensor, left: Tensor, inverse_width: Tensor, vocabulary: Tensor
    ) -> None:
        super().__init__()
        columns, size = vocabulary.shape
        self.register_buffer("center", center)
        self.register_buffer("inverse_scale", inverse_scale)
        self.register_buffer("left", left)
        self.register_buffer("inverse_width", inverse_width)
        self.register_buffer("vocabulary", vocabulary)
        self.register_buffer("offset", torch.arange(columns) * (size + 1))

    @property
    def embedding_rows(self) -> int:
        """Number of rows of the joint embedding table: a vocabulary and one unknown for each column."""
        return self.vocabulary.shape[0] * (self.vocabulary.shape[1] + 1)

    def forward(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode raw rows of `numeric` (rows, features) float32 and `categorical` (rows, columns) int64 hashes."""
        scaled, missing = self._scale(numeric)
        return scaled, missing, self._look_up(categorical)

    def encode(self, data: TabularData) -> EncodedRows:
        """Encode a whole data set once, so that no epoch does it again."""
        with torch.inference_mode():
            scaled, missing = self._scale(data.numeric)
            category = self._look_up(data.categorical)
        return EncodedRows(scaled.clone(), missing.clone(), category.clone())

    def bins(self, scaled: Tensor) -> Tensor:
        """Code scaled numbers piecewise linearly: (rows, features) to (rows, features * bins) in [0, 1]."""
        return piecewise_linear(scaled, self.left, self.inverse_width)

    def _scale(self, numeric: Tensor) -> tuple[Tensor, Tensor]:
        numeric = at_least_one_column(numeric)
        known = torch.isfinite(numeric)
        scaled = (torch.where(known, numeric, self.center) - self.center) * self.inverse_scale
        return scaled * torch.rsqrt(1.0 + (scaled / 3.0) ** 2), torch.where(known, 0.0, 1.0)

    def _look_up(self, categorical: Tensor) -> Tensor:
        keys = at_least_one_column(categorical).t().contiguous()
        index = torch.searchsorted(self.vocabulary, keys).clamp(max=self.vocabulary.shape[1] - 1)
        known = torch.gather(self.vocabulary, 1, index) == keys
        return torch.where(known, index + 1, 0).t() + self.offset


def fit_preprocessing(
    data: TabularData, *, bins: int, min_category_rows: int, max_categories: int
) -> Preprocessing:
    """Learn medians, spreads, quantile bins and vocabularies from training rows.

    bins: pieces of the linear code of a number; min_category_rows: a rarer category counts as unknown;
    max_categories: number of most frequent categories that a column keeps.
    """
    numeric = at_least_one_column(data.numeric).numpy()
    categorical = at_least_one_column(data.categorical).numpy()
    if len(numeric) > _QUANTILE_ROWS:
        numeric = numeric[:: -(-len(numeric) // _QUANTILE_ROWS)]
    center, scale = _center_and_scale(numeric)
    left, inverse_width = _quantile_bins(numeric, center, scale, bins)
    return Preprocessing(
        torch.from_numpy(center),
        torch.from_numpy((1.0 / scale).astype(np.float32)),
        torch.from_numpy(left),
        torch.from_numpy(inverse_width),
        torch.from_numpy(_vocabularies(categorical, min_category_rows, max_categories)),
    )


def at_least_one_column(values: Tensor) -> Tensor:
    """Return `values` (rows, columns), or a column of zeros for none: an empty weight cannot be exported."""
    return pad(values, (0, 1)) if values.shape[1] == 0 else values


@dataclass(frozen=True, slots=True)
class TabularData:
    """Raw rows of a data set, as tensors.

    numeric: (rows, features) float32, NaN where missing; categorical: (rows, columns) int64 hashes, 0 where missing;
    label: (rows,) float32 of 0 and 1; of several classes int64, indices into `classes`; of numbers float64.
    """

    numeric: Tensor
    categorical: Tensor
    label: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.label.shape[0]

    def take(self, rows: Tensor) -> TabularData:
        """Select the given rows, in the given order."""
        return TabularData(self.numeric[rows], self.categorical[rows], self.label[rows], self.classes)

    @classmethod
    def joined(cls, parts: Sequence[TabularData]) -> Self:
        """Join parts of a data set without labels, in their order."""
        numeric, categorical = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("numeric", "categorical")
        )
        return cls(numeric, categorical, torch.zeros(len(numeric)))


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a snapshot as they are stored, read in batches as often as asked. Raises: TrainingDataError without feature columns."""

    table: Table
    snapshot: TableSnapshot
    columns: Columns

    def __post_init__(self) -> None:
        if not self.columns.numeric and not self.columns.categorical:
            raise TrainingDataError("no feature columns were named: name some as numeric or categorical")

    def batches(self, *, times_and_label: bool = True, features: bool = True) -> Iterator[pa.Table]:
        """Read batches of all rows: their times and label, their features, or both."""
        columns = self.columns
        wanted = [TIME_COLUMN, columns.label] if times_and_label else []
        wanted += [*columns.numeric, *columns.categorical] if features else []
        return self.table.batches(version=self.snapshot.version, columns=wanted)

    def labels(self) -> Iterator[pa.Table]:
        """Read times and labels of all rows."""
        return self.batches(features=False)

    def first(self, count: int) -> TabularData:
        """Read the features of the first rows."""
        return self.features(self.table.head(count, version=self.snapshot.version))

    def features(self, rows: pa.Table) -> TabularData:
        """Convert the features of some rows, without labels."""
        numeric = torch.from_numpy(numeric_matrix(rows, self.columns.numeric))
        categorical = torch.from_numpy(category_matrix(rows, self.columns.categorical))
        return TabularData(numeric, categorical, torch.zeros(rows.num_rows))


def require_both_classes(label: Tensor, where: str) -> None:
    """Check that `label` (rows,) holds both classes; `where` names the rows in the error. Raises: TrainingDataError."""
    positives = int(label.sum())
    if positives in {0, len(label)}:
        raise TrainingDataError(
            f"{where} has one class only ({positives} of {len(label)} rows are positive): nothing can be learnt "
            "from it; widen the time range or check the label"
        )


def tabular_data(
    table: pa.Table, *, numeric: Sequence[str], categorical: Sequence[str], label: str, task: Task = "binary"
) -> TabularData:
    """Read the named columns of a table of examples.

    Raises: TrainingDataError if the table is empty, a column is absent or of the wrong kind, or the label has one
    class only.
    """
    if table.num_rows == 0:
        raise TrainingDataError("the table has no rows: there is nothing to learn from")
    if not numeric and not categorical:
        raise TrainingDataError("no feature columns were named: name some as numeric or categorical")
    classes, labels = labels_of(table, label, task)
    return TabularData(
        torch.from_numpy(numeric_matrix(table, numeric)),
        torch.from_numpy(category_matrix(table, categorical)),
        labels,
        classes,
    )


def labels_of(table: pa.Table, label: str, task: Task) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes, if there are any, and the label column as in `TabularData`. Raises: TrainingDataError."""
    if task == "multiclass":
        classes, indices = class_labels(table, label)
        return classes, torch.from_numpy(indices)
    if task == "regression":
        return (), torch.tensor(number_labels(table, label))
    labels = torch.tensor(binary_labels(table, label))
    require_both_classes(labels, f"label column {label!r}")
    return (), labels


def split_rows(table: pa.Table, *, valid_fraction: float, by: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Split a table into row numbers for training and for validation, as `held_out_rows` chooses them.

    Raises: TrainingDataError if either part would be empty, or there is no time to split by.
    """
    held_out = held_out_rows(table, valid_fraction=valid_fraction, by=by, seed=seed)
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


def _finite(column: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    finite: npt.NDArray[np.float64] = column[np.isfinite(column)].astype(np.float64)
    return finite


def _center_and_scale(numeric: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Median and spread of each column; a constant or empty column gets a spread of 1."""
    center = np.zeros(numeric.shape[1], dtype=np.float32)
    scale = np.ones(numeric.shape[1], dtype=np.float32)
    for j in range(numeric.shape[1]):
        values = _finite(numeric[:, j])
        if values.size == 0:
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        spread = (high - low) / _NORMAL_IQR or float(values.std())
        center[j] = middle
        scale[j] = spread if spread > 0 else 1.0
    return center, scale


def _quantile_bins(
    numeric: npt.NDArray[Any], center: npt.NDArray[Any], scale: npt.NDArray[Any], bins: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    left = np.zeros((numeric.shape[1], bins), dtype=np.float32)
    inverse_width = np.zeros((numeric.shape[1], bins), dtype=np.float32)
    for j in range(numeric.shape[1]):
        values = _finite(numeric[:, j])
        if values.size == 0:
            continue
        scaled = (values - center[j]) / scale[j]
        squashed = scaled / np.sqrt(1.0 + (scaled / 3.0) ** 2)
        edges = np.unique(np.quantile(squashed, np.linspace(0.0, 1.0, bins + 1)))
        width = np.diff(edges)
        wide = width > 1e-6  # noqa: PLR2004 - below it, float32 cannot tell the edges apart
        pieces = int(wide.sum())
        left[j, :pieces] = edges[:-1][wide]
        inverse_width[j, :pieces] = 1.0 / width[wide]
    return left, inverse_width


def _vocabularies(categorical: npt.NDArray[Any], min_rows: int, max_categories: int) -> npt.NDArray[Any]:
    """Sorted frequent hashes of each column, padded at the end to one width; 0 (missing) always belongs."""
    kept = []
    for j in range(categorical.shape[1]):
        values, counts = np.unique(categorical[:, j], return_counts=True)
        frequent = counts >= min_rows
        values, counts = values[frequent], counts[frequent]
        top = values[np.argsort(-counts, kind="stable")[:max_categories]]
        kept.append(np.union1d(top, np.zeros(1, dtype=np.int64)))
    width = max(len(values) for values in kept)
    vocabulary = np.full((len(kept), width), _PADDING, dtype=np.int64)
    for j, values in enumerate(kept):
        vocabulary[j, : len(values)] = values
    return vocabulary
