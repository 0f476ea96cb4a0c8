"""Shared cases of the histogram's tests and benchmark, with ordinary and awkward shapes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toque.kernels.histogram import quantile_edges


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix [rows, columns] of some kind of numbers, to be counted in `bins` bins a column."""

    rows: int
    columns: int
    bins: int
    kind: str = "normal"
    dtype: str = "float32"

    def arrays(self, seed: int = 0) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.float32]]:
        """Draw values [rows, columns] and edges [columns, bins + 1]."""
        rng = np.random.default_rng(seed)
        reference = _draw(
            rng, "normal" if self.kind in {"null", "outlier"} else self.kind, (999, self.columns)
        )
        values = _draw(rng, self.kind, (self.rows, self.columns)).astype(self.dtype)
        return values, quantile_edges(reference, bins=self.bins)


def _draw(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    values = rng.standard_normal(shape)
    if kind == "ties":
        return np.floor(np.abs(values))
    if kind == "constant":
        return np.full(shape, 3.25)
    if kind == "null":
        return np.full(shape, np.nan)
    if kind == "outlier":
        values[:: max(1, shape[0] // 5)] = [1e30]
        values[1 :: max(2, shape[0] // 7)] = -np.inf
        values[2 :: max(3, shape[0] // 3)] = np.nan
    return values


CASES = (
    Case(0, 2, 4),
    Case(1, 1, 1),
    Case(7, 3, 5),
    Case(64, 1, 32),
    Case(4_096, 2, 64),
    Case(4_097, 3, 65),
    Case(5_000, 5, 10, "ties"),
    Case(5_000, 2, 16, "constant"),
    Case(130, 4, 8, "null"),
    Case(9_001, 3, 20, "outlier"),
    Case(3_000, 2, 31, "normal", "float64"),
    Case(3_000, 2, 31, "ties", "float16"),
    Case(8_000, 1, 300),
    Case(12_289, 2, 33, "outlier", "float64"),
)
"""Test cases that take no time."""

BENCHMARKS = (
    Case(1_000_000, 20, 20),
    Case(1_000_000, 20, 64),
    Case(1_000_000, 20, 20, "ties"),
    Case(1_000_000, 20, 20, "constant"),
    Case(1_000_000, 4, 1_000),
)
"""Benchmark sizes as in drift monitoring of a busy model's day."""
