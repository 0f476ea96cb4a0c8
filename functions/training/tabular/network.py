"""Network for rows of tables, and its learning task: piecewise linear numbers, embedded categories, a small MLP.

Below the network of a number lies a straight line, which the network only corrects. A network that begins at random has to find
the line first, and with few rows, much noise or wide tails it ends behind it. So the line is solved for by ridge regression of
the encoded rows, and kept as it is; the network's last layer begins at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from toque.functions.training.loop.task import Batch, CountedRows, Order, epoch_seed, uniform_order
from toque.functions.training.tabular.preprocessing import EncodedRows, Preprocessing
from toque.functions.training.tabular.settings import TabularSettings
from toque.functions.training.tabular.target import Target
from toque.kernels.encoder import encode_linear

_LINE_ROWS = 100_000  # more rows do not move a line noticeably
_RIDGE_ALPHA = 1.0
_FAR = 2.999  # of a squashed number, some 130 spreads from the middle: behind it float32 cannot tell numbers apart


class TabularNet(nn.Module):
    """Network from encoded rows to logits (rows, outputs).

    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022 (piecewise linear
    encoding); Holzmüller et al., Better by Default (RealMLP), 2024 (robust scaling, smooth clipping).
    line: whether it corrects a straight line, as for a number, instead of answering by itself.
    """

    def __init__(
        self, preprocessing: Preprocessing, params: TabularSettings, *, outputs: int = 1, line: bool = False
    ) -> None:
        super().__init__()
        self.preprocessing, self.outputs = preprocessing, outputs
        features, bins = preprocessing.left.shape
        columns = preprocessing.vocabulary.shape[0]
        self.embedding = nn.Embedding(preprocessing.embedding_rows, params.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        width = features * (bins + 2) + columns * params.embedding_dim
        layers: list[nn.Module] = []
        for hidden in params.hidden:
            layers += [nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(params.dropout)]
            width = hidden
        last = nn.Linear(width, outputs)
        self.layers = nn.Sequential(*layers, last)
        self.line = Line(features, preprocessing.embedding_rows) if line else None
        if line:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, numeric: Tensor, missing: Tensor, category: Tensor) -> Tensor:
        """Compute logits of encoded rows (see `EncodedRows` for the shapes)."""
        first, *others = self.layers
        first = cast("nn.Linear", first)
        logits = encode_linear(
            numeric, missing, category, self.preprocessing.left, self.preprocessing.inverse_width, self.embedding.weight,
            first.weight, first.bias,
        )  # fmt: skip
        for layer in others:
            logits = layer(logits)
        return logits if self.line is None else logits + self.line(numeric, missing, category)


class Line(nn.Module):
    """Linear answer (rows, 1) for encoded rows, in the coded label's unit.

    slope: (2 * features,) of numbers before they were squashed, and of missing flags; level: of each row of the embedding table.
    """

    slope: Tensor
    level: Tensor
    offset: Tensor

    def __init__(self, features: int, embedding_rows: int) -> None:
        super().__init__()
        self.register_buffer("slope", torch.zeros(2 * features))
        self.register_buffer("level", torch.zeros(embedding_rows, 1))
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, numeric: Tensor, missing: Tensor, category: Tensor) -> Tensor:
        """Answer encoded rows (see `EncodedRows` for the shapes)."""
        numbers = torch.cat([unsquashed(numeric), missing], dim=1)
        levels = nn.functional.embedding(category, self.level).squeeze(2).sum(dim=1, keepdim=True)
        return (numbers * self.slope).sum(dim=1, keepdim=True) + levels + self.offset

    def fit(self, train: Examples, valid: Examples) -> None:
        """Solve for the line of the training rows; stays at zero, the mean, if that is nearer to the validation rows."""
        from sklearn.linear_model import Ridge  # late, as in the gate's baselines

        chosen = torch.from_numpy(
            np.linspace(0, len(train) - 1, min(len(train), _LINE_ROWS)).astype(np.int64)
        )
        rows, label = train.batch(chosen)
        solved = Ridge(alpha=_RIDGE_ALPHA).fit(self._design(rows), label.numpy())
        weights = torch.from_numpy(np.asarray(solved.coef_, dtype=np.float32))
        self.slope.copy_(weights[: len(self.slope)])
        self.level.copy_(weights[len(self.slope) :, None])
        self.offset.fill_(float(solved.intercept_))
        held_out, wanted = valid.batch(torch.arange(len(valid)))
        with torch.no_grad():
            found = self(held_out.numeric, held_out.missing, held_out.category).squeeze(1)
        if not float(((found - wanted) ** 2).mean()) < float((wanted**2).mean()):
            for weight in (self.slope, self.level, self.offset):
                weight.zero_()

    def _design(self, rows: EncodedRows) -> object:
        """Sparse matrix of numbers, missing flags and one column for each row of the embedding table."""
        from scipy.sparse import csr_matrix, hstack

        numbers = torch.cat([unsquashed(rows.numeric), rows.missing], dim=1).numpy()
        count, columns = rows.category.shape
        places = (np.repeat(np.arange(count), columns), rows.category.numpy().ravel())
        one_hot = csr_matrix((np.ones(count * columns, dtype=np.float32), places), (count, len(self.level)))
        return hstack([csr_matrix(numbers), one_hot], format="csr")


def unsquashed(numeric: Tensor) -> Tensor:
    """Scaled numbers as they were before the soft clipping at three."""
    near = numeric.clamp(-_FAR, _FAR)
    return near * torch.rsqrt(1.0 - (near / 3.0) ** 2)


class RowSource(Protocol):
    """Source of encoded rows, in memory or in a file."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> EncodedRows:
        """Read the given rows, in the given order."""

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Encoded rows with their labels (rows,), coded by the target."""

    rows: RowSource
    label: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def batch(self, rows: Tensor) -> tuple[EncodedRows, Tensor]:
        """Read the given rows and their labels."""
        return self.rows.take(rows), self.label[rows]

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""
        self.rows.prefetch(rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the rows in an epoch: drawn uniformly."""
        return uniform_order(len(self), epoch_seed(seed, epoch))


class Examples(Protocol):
    """Rows to learn from with their labels, in memory, in a file or in shards."""

    def __len__(self) -> int: ...

    @property
    def rows(self) -> RowSource:
        """Encoded rows without their labels."""

    @property
    def label(self) -> Tensor:
        """Labels (rows,), coded by the target."""

    def batch(self, rows: Tensor) -> tuple[EncodedRows, Tensor]:
        """Read the given rows and their labels."""

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the given rows, which will be read soon."""

    def order(self, seed: int, epoch: int) -> Order:
        """Order in which the rows are learnt from in an epoch."""


@dataclass(frozen=True, slots=True)
class TabularTask(CountedRows):
    """Learning task on a table.

    offset: (columns,) code of each column's unknown category; unknown_rate: share of categories hidden in a step.
    """

    train: Examples
    valid: Examples
    target: Target
    offset: Tensor
    unknown_rate: float

    @property
    def units(self) -> dict[str, int]:
        """Return no units, since speed is reported in rows."""
        return {}

    def train_batch(self, rows: Tensor) -> Batch:
        """Batch of numbers, missing flags, categories (some of them hidden) and labels."""
        taken, label = self.train.batch(rows)
        return taken.numeric, taken.missing, self._hide_some(taken.category), label

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch the training rows of a step to come."""
        self.train.prefetch(rows)

    def order(self, seed: int, epoch: int) -> Order:
        """Order of the training rows in an epoch."""
        return self.train.order(seed, epoch)

    def valid_batch(self, rows: Tensor) -> Batch:
        """Batch of numbers, missing flags, categories and labels."""
        taken, label = self.valid.batch(rows)
        return taken.numeric, taken.missing, taken.category, label

    def loss(self, module: nn.Module, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """Loss of a batch as the target defines it."""
        *inputs, label = batch
        return self.target.loss(module(*inputs), label, reduction=reduction)

    def _hide_some(self, category: Tensor) -> Tensor:
        if self.unknown_rate == 0.0:
            return category
        hidden = torch.rand(category.shape) < self.unknown_rate
        return torch.where(hidden, self.offset, category)
