"""The straight line below the network of a number: ridge regression of the encoded rows, which the network only corrects.

A network that begins at random has to find the line first, and with few rows, much noise or wide tails it ends behind it. So
the line is solved for, and kept as it is; the network's last layer begins at zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from toque.functions.training.tabular.preprocessing import EncodedRows
from toque.functions.training.tabular.task import Examples

_ROWS = 100_000  # more rows do not move a line noticeably
_ALPHA = 1.0
_FAR = 2.999  # of a squashed number, some 130 spreads from the middle: behind it float32 cannot tell numbers apart


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

        chosen = torch.from_numpy(np.linspace(0, len(train) - 1, min(len(train), _ROWS)).astype(np.int64))
        rows, label = train.batch(chosen)
        solved = Ridge(alpha=_ALPHA).fit(self._design(rows), label.numpy())
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
