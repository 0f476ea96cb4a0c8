"""Shared cases of the encoder's tests and benchmark, with ordinary and awkward shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of `features` numbers in `bins` bins and of `columns` categories, into a layer of `hidden` values.

    width: of an embedding; entries: of the embedding table for each column, the first of which stands for unknown ones.
    """

    rows: int
    features: int
    columns: int
    hidden: int
    bins: int = 12
    width: int = 8
    entries: int = 30
    dtype: torch.dtype = torch.float32

    @property
    def inputs(self) -> int:
        """Number of values that the layer multiplies."""
        return self.features * (self.bins + 2) + self.columns * self.width

    def tensors(self, seed: int = 0, *, device: str = "cpu") -> tuple[Tensor, ...]:
        """Draw the arguments of `encode_linear`: a fifth of numbers missing, a tenth of categories unknown, some bins unused."""
        chance = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=chance, dtype=torch.float64).to(self.dtype)

        missing = (torch.rand(self.rows, self.features, generator=chance) < 0.2).to(self.dtype)  # noqa: PLR2004
        numeric = torch.where(missing > 0, torch.zeros(()).to(self.dtype), normal(self.rows, self.features))
        edges = normal(self.features, self.bins + 1).sort(dim=1).values
        used = torch.arange(self.bins) < max(1, self.bins - 1)  # the last bin of a narrow column has no width
        inverse_width = torch.where(used, 1.0 / edges.diff(dim=1), torch.zeros(()).to(self.dtype))
        left = torch.where(used, edges[:, :-1], torch.zeros(()).to(self.dtype))
        drawn = torch.randint(self.entries, (self.rows, self.columns), generator=chance)
        known = torch.rand(self.rows, self.columns, generator=chance) >= 0.1  # noqa: PLR2004
        category = drawn * known + torch.arange(self.columns) * self.entries
        table = normal(max(1, self.columns * self.entries), self.width)
        weight = normal(self.hidden, self.inputs) / max(1, self.inputs) ** 0.5
        found = (numeric, missing, category, left, inverse_width, table, weight, normal(self.hidden))
        return tuple(each.to(device) for each in found)


CASES = (
    Case(0, 3, 2, 16),
    Case(1, 3, 2, 16),
    Case(1, 1, 1, 1, bins=1, width=1, entries=1),
    Case(7, 0, 3, 8),
    Case(7, 3, 0, 8),
    Case(64, 4, 2, 32),
    Case(65, 5, 3, 33, bins=7, width=3),
    Case(130, 2, 1, 150, bins=3),
    Case(257, 3, 2, 20, dtype=torch.float64),
    Case(600, 6, 4, 24, bins=5, width=4, entries=200),
    Case(200, 3, 2, 24, dtype=torch.float16),
)
"""Test cases small enough for Triton's interpreter."""

BENCHMARKS = (
    Case(2_048, 25, 6, 128, entries=1_000),
    Case(65_536, 25, 6, 128, entries=1_000),
    Case(1_048_576, 25, 6, 128, entries=1_000),
    Case(65_536, 100, 20, 256, entries=10_000),
    Case(65_536, 25, 6, 128, entries=1_000, dtype=torch.bfloat16),
)
"""Benchmark sizes: a step of the default settings, and larger ones that fill a card."""

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Greatest difference by dtype, over the greatest value of what is compared."""
