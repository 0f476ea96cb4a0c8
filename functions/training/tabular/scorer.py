"""Torch module that is exported: preprocessing, network and calibration in one graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toque.functions.training.tabular.network import TabularNet
from toque.functions.training.tabular.target import Target


class TabularScorer(nn.Module):
    """Module from raw rows to calibrated answers, which is exported and served."""

    inverse_temperature: Tensor

    def __init__(self, net: TabularNet, target: Target, inverse_temperature: float) -> None:
        super().__init__()
        self.net, self.target = net, target
        self.register_buffer("inverse_temperature", torch.tensor(inverse_temperature, dtype=torch.float32))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Compute answers (rows, outputs) float32 from `numeric` (rows, F) float32, `categorical` (rows, C) int64."""
        scaled, missing, category = self.net.preprocessing(numeric, categorical)
        return self.target.answer(self.net(scaled, missing, category) * self.inverse_temperature)
