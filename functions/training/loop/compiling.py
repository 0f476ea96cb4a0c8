"""How a network's steps are computed: compiled by torch, or with activations computed again. Weights and their names stay the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from functions.training.errors import TrainingError


class Compiled(nn.Module):
    """Compiled form of a network, with the network's own weights. Compilation waits for the first call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._name, self._fast = type(module).__name__, torch.compile(module)

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
    lists = [found for found in net.modules() if isinstance(found, nn.ModuleList)]
    inner = {id(each) for found in lists for block in found for each in block.modules() if each is not block}
    for block in (each for found in lists for each in found if id(each) not in inner):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
