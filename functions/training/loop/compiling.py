"""How a network's steps are computed: compiled by torch, or with activations computed again. Weights and their names stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from toque.functions.training.errors import TrainingError


class Compiled(nn.Module):
    """Compiled form of a network, with the network's own weights. Compilation waits for the first call.

    Where blocks of a `ModuleList` hold most of the weights, each block is compiled by itself, in place: blocks alike share a program,
    and what decoders of `transformers` do around them, such as choosing a causal kernel over a mask, stays free to look at values.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._name, blocks = type(module).__name__, _blocks(module)
        if 2 * sum(map(_weights, blocks)) > _weights(module):
            for block in blocks:
                block.compile()
            self._fast: Any = module
        else:
            self._fast = torch.compile(module)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Compute the network's output from compiled code. Raises: TrainingError if torch cannot compile it here."""
        from torch._dynamo.exc import TorchDynamoException  # late: the errors have no public name

        try:
            return self._fast(*inputs, **named)
        except TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TrainingError(
                f"compiled=True: torch.compile cannot compile {self._name} here ({reason}); it needs a C++ compiler, and "
                "Triton on a GPU; train with compiled=False"
            ) from error


def recompute_blocks(net: nn.Module) -> None:
    """Let each block of a `ModuleList` compute its activations again for its gradients; a block within a block does so once."""
    for block in _outer(net):
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def computed(
        *inputs: Any, **named: Any
    ) -> Any:  # a function, since torch.compile passes a partial of `checkpoint` by
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    return computed


def _outer(net: nn.Module) -> list[nn.Module]:
    """Members of `ModuleList`s that stand in no other member."""
    lists = [found for found in net.modules() if isinstance(found, nn.ModuleList)]
    inner = {id(each) for found in lists for block in found for each in block.modules() if each is not block}
    return [each for found in lists for each in found if id(each) not in inner]


def _blocks(net: nn.Module) -> list[nn.Module]:
    """Outer members that have layers of their own: a list of single layers leaves nothing to join within one."""
    return [each for each in _outer(net) if next(each.children(), None) is not None]


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
