"""A network whose steps torch compiles; its weights and their names stay those of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from functions.training.errors import TrainingError


class Compiled(nn.Module):
    """The same network with the same weights, answering from compiled code. Compilation waits for the first call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._name, self._fast = type(module).__name__, torch.compile(module)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's answer. Raises: TrainingError if torch cannot compile it here."""
        from torch._dynamo.exc import TorchDynamoException  # late: the errors have no public name

        try:
            return self._fast(*inputs, **named)
        except TorchDynamoException as error:
            told = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TrainingError(
                f"compiled=True: torch.compile cannot compile {self._name} here ({told}); it needs a C++ compiler, and "
                "Triton on a GPU; train with compiled=False"
            ) from error
