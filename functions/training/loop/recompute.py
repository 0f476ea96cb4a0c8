"""Activation checkpointing: a block keeps its inputs only, and is computed again when its gradients are."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(net: nn.Module) -> None:
    """Let each block of a `ModuleList` compute its activations again for its gradients; a block within a block does so once."""
    lists = [found for found in net.modules() if isinstance(found, nn.ModuleList)]
    inner = {id(each) for found in lists for block in found for each in block.modules() if each is not block}
    for block in (each for found in lists for each in found if id(each) not in inner):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
