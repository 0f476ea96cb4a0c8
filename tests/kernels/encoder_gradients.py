"""Results and gradients of an implementation of the encoder on a case, and their greatest difference."""

from collections.abc import Callable

import torch
from torch import Tensor

from toque.kernels.encoder_cases import Case


def results_and_gradients(
    encode: Callable[..., Tensor], case: Case, seed: int = 0, *, device: str = "cpu"
) -> dict[str, Tensor]:
    *encoded, table, weight, bias = case.tensors(seed, device=device)
    learnt = {"table": table, "weight": weight, "bias": bias}
    found = encode(*encoded, *(each.requires_grad_() for each in learnt.values()))
    change = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found.backward(change.to(found))
    gradients = {name: each.grad for name, each in learnt.items() if each.grad is not None}
    assert len(gradients) == len(learnt)
    return {"result": found.detach(), **gradients}


def greatest_gap(wanted: Tensor, got: Tensor) -> float:
    """Greatest difference over the greatest value; infinite if shape or dtype differ."""
    if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
        return float("inf")
    if not wanted.numel():
        return 0.0
    return float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1.0))
