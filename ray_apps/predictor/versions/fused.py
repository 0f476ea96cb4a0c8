"""Replacement of operators in a program by a kernel of the platform that computes the same on a CUDA device.

Versions are saved as plain operators, which any reader of torch programs knows; so the kernel is put in where a program is placed
on a device, also for versions saved before there was one. Answers are then compared with the CPU's, as for any program there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, replace_pattern, wrap

from toque.kernels.encoder import encode_linear

__all__ = ["fuse"]

_aten = torch.ops.aten
wrap("encode_linear")


def fuse(program: GraphModule) -> int:
    """Replace the operators of a tabular network's first layer by `encode_linear`, in place; returns how many layers it found."""
    return len(replace_pattern(program, _operators, _kernel))


def _operators(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """What `toque.kernels.encoder.encode_linear_reference` is in a saved program."""
    embedded = _aten.flatten.using_ints(_aten.embedding.default(table, category), 1)
    above = _aten.sub.Tensor(_aten.unsqueeze.default(numeric, 2), left)
    shares = _aten.clamp.default(_aten.mul.Tensor(above, inverse_width), 0.0, 1.0)
    codes = [_aten.flatten.using_ints(shares, 1), numeric, missing, embedded]
    found: Tensor = _aten.linear.default(_aten.cat.default(codes, 1), weight, bias)
    return found


def _kernel(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    return encode_linear(numeric, missing, category, left, inverse_width, table, weight, bias)
