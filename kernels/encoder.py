"""First layer of a tabular network, from encoded rows to its first hidden values, in one step.

A row is coded and then multiplied: each number as shares of its bins, the number itself and its missing flag, each category as
its row of an embedding table. Written out, the codes are the largest tensor of a step, some ten times the row and the result
together. The Triton kernel makes them tile by tile where they are multiplied, and again for the gradient, so no memory ever
holds them.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear


def encode_linear(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Code rows and apply a linear layer: by a Triton kernel on a CUDA device, by torch's operators otherwise.

    numeric, missing: (rows, features), numbers without NaN and flags; category: (rows, columns) int64 rows of the embedding table
    `table` (entries, width); left, inverse_width: (features, bins) of the piecewise linear code; weight: (hidden, inputs), where
    inputs = features * (bins + 2) + columns * width in the order codes, numbers, flags, embeddings; bias: (hidden,).
    Returns: (rows, hidden). Gradients reach table, weight and bias; where one is wanted for the numbers, and in a graph that is
    traced or compiled, torch's operators compute it on any device.
    """
    inputs = (numeric, missing, category, left, inverse_width, table, weight, bias)
    if _by_kernel(numeric, missing):
        from toque.kernels.encoder_triton import (
            encode_linear_triton,  # late: Triton is needed with a GPU only
        )

        return encode_linear_triton(*inputs)
    return encode_linear_reference(*inputs)


def encode_linear_reference(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Compute `encode_linear` with torch's operators, whose gradients are torch's own."""
    embedded = embedding(category, table).flatten(1)
    codes = piecewise_linear(numeric, left, inverse_width)
    return linear(torch.cat([codes, numeric, missing, embedded], dim=1), weight, bias)


def piecewise_linear(numeric: Tensor, left: Tensor, inverse_width: Tensor) -> Tensor:
    """Code numbers (rows, features) as shares in [0, 1] of the bins below them: (rows, features * bins).

    left, inverse_width: (features, bins); a bin of inverse width 0 is unused, and its share 0.
    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022.
    """
    return ((numeric.unsqueeze(2) - left) * inverse_width).clamp(0.0, 1.0).flatten(1)


def _by_kernel(numeric: Tensor, missing: Tensor) -> bool:
    wants_gradient = numeric.requires_grad or missing.requires_grad
    return numeric.is_cuda and not wants_gradient and not torch.compiler.is_compiling() and _has_triton()


@cache
def _has_triton() -> bool:
    """Whether Triton is installed: it comes with torch's CUDA builds, and else by the extra `gpu`. Asked on a GPU only."""
    installed = find_spec("triton") is not None
    if not installed:
        logging.getLogger(__name__).warning(
            "no Triton: torch's operators encode rows instead, slower; pip install 'toque[gpu]'"
        )
    return installed
