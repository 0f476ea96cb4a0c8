"""Profile of a column in one cohort: a few figures that show whether its feed broke."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

QUARTILES = (0.25, 0.5, 0.75)

Range = tuple[float | None, float | None]


class ColumnProfile(BaseModel):
    """Profile of one column of one cohort.

    index: of the cohort. nulls: missing values, NaN included. outside: values beyond the declared range, infinite ones
    always. top_share: share of the most frequent value among those present, 0 where there is none.
    quartiles: of the finite values of a numeric column; empty for others.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    rows: int
    nulls: int
    outside: int = 0
    top_share: float = 0.0
    quartiles: tuple[float, ...] = ()

    @classmethod
    def of_numbers(cls, index: int, values: npt.NDArray[Any], allowed: Range = (None, None)) -> Self:
        """Profile numbers (rows,), NaN where missing. allowed: least and most value, None where unbounded."""
        present = values[~np.isnan(values)]
        finite = present[np.isfinite(present)]
        least, most = allowed
        beyond = np.zeros(len(finite), dtype=bool)
        if least is not None:
            beyond |= finite < least
        if most is not None:
            beyond |= finite > most
        return cls(
            index=index,
            rows=len(values),
            nulls=len(values) - len(present),
            outside=int(beyond.sum()) + len(present) - len(finite),
            top_share=_top_share(np.unique(present, return_counts=True)[1]),
            quartiles=tuple(np.quantile(finite.astype(np.float64), QUARTILES).tolist())
            if len(finite)
            else (),
        )

    @classmethod
    def of_words(cls, index: int, words: pa.ChunkedArray | pa.Array) -> Self:
        """Profile strings (rows,), null where missing."""
        counts = pc.value_counts(words.drop_null()).field("counts").to_numpy()
        return cls(index=index, rows=len(words), nulls=words.null_count, top_share=_top_share(counts))

    @property
    def present(self) -> int:
        """Number of values that are there."""
        return self.rows - self.nulls

    @property
    def null_share(self) -> float:
        """Share of missing values; 0 of no rows."""
        return self.nulls / self.rows if self.rows else 0.0


def _top_share(counts: npt.NDArray[Any]) -> float:
    return float(counts.max() / counts.sum()) if len(counts) else 0.0
