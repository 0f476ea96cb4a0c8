"""Several tabular networks of one shape as one: each weight has a first axis of trials, and matrices are multiplied in batches.

The rows are the same for all trials, so numbers are coded once, and the first layer's part on them is one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, silu

from toque.functions.training.tabular.network import TabularNet

_TABLE, _LAYER = "embedding.weight", "layers.{}.{}"
_EACH = 3  # modules of a hidden layer: linear, SiLU, dropout
Weights = dict[str, Tensor]


class StackedNet:
    """Networks of `count` trials with the shape of `net`, and its weights to begin with.

    weights: by their name in `net`, each (count, …).
    """

    def __init__(self, net: TabularNet, count: int) -> None:
        self.net, self.count = net, count
        self.weights: Weights = {}
        self.put({name: each.detach().expand(count, *each.shape) for name, each in net.named_parameters()})

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers, each followed by dropout."""
        return [each.out_features for each in self._linear[:-1]]

    @property
    def _linear(self) -> list[nn.Linear]:
        return [each for each in self.net.layers if isinstance(each, nn.Linear)]

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights of all trials, of which there may be others than before."""
        self.weights = {name: each.clone().requires_grad_() for name, each in weights.items()}
        self.count = len(next(iter(self.weights.values())))

    def __call__(self, numeric: Tensor, missing: Tensor, category: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Compute logits (count, rows, outputs) of encoded rows; masks: (count, rows, width) of each dropout, none to score."""
        shared = torch.cat([self.net.preprocessing.bins(numeric), numeric, missing], dim=1)
        found = self._first(shared, self._embedded(category))
        for number in range(1, len(self._linear)):
            found = silu(found) if not masks else silu(found) * masks[number - 1]
            weight, bias = self._layer(number)
            found = torch.baddbmm(bias.unsqueeze(1), found, weight.transpose(1, 2))
        return found if self.net.line is None else found + self.net.line(numeric, missing, category)

    def _embedded(self, category: Tensor) -> Tensor:
        """Vectors of the rows' categories, one after the other: (count, rows, columns * embedding_dim)."""
        table = self.weights[_TABLE]  # [count, embedding_rows, embedding_dim]
        first = torch.arange(self.count, device=category.device) * table.shape[1]
        return embedding(category + first[:, None, None], table.flatten(0, 1)).flatten(2)

    def _first(self, shared: Tensor, embedded: Tensor) -> Tensor:
        """First layer: (count, rows, width) of what all trials share, (rows, inputs), and of what each has embedded."""
        weight, bias = self._layer(0)
        width, own = weight[:, :, : shared.shape[1]], weight[:, :, shared.shape[1] :]
        common = linear(shared, width.flatten(0, 1), bias.flatten())  # [rows, count * width]
        common = common.view(len(shared), self.count, -1).transpose(0, 1)
        return torch.baddbmm(common, embedded, own.transpose(1, 2))

    def _layer(self, number: int) -> tuple[Tensor, Tensor]:
        weight, bias = (self.weights[_LAYER.format(number * _EACH, each)] for each in ("weight", "bias"))
        return weight, bias
