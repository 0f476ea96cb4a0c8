"""Network for rows of tables: piecewise linear numbers and embedded categories into a small MLP."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.line import Line
from toque.functions.training.tabular.preprocessing import Preprocessing
from toque.kernels.encoder import encode_linear


class TabularNet(nn.Module):
    """Network from encoded rows to logits (rows, outputs).

    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022 (piecewise linear
    encoding); Holzmüller et al., Better by Default (RealMLP), 2024 (robust scaling, smooth clipping).
    line: whether it corrects a straight line, as for a number, instead of answering by itself.
    """

    def __init__(
        self, preprocessing: Preprocessing, params: TabularParams, *, outputs: int = 1, line: bool = False
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
