"""Networks of Hugging Face folders: built without weights, with adapters or without, and filled from safetensors by rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from functions.training.errors import TrainingDataError
from functions.training.llm.fine_tune import Lora
from functions.training.loop.first_weights import Initialised, Rows, reset, without_weights

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_ADAPTED = (
    "base_model.model.",
    "base_layer.",
)  # what adapters put into the names of the weights that they adapt


@dataclass(frozen=True)
class Pretrained:
    """First weights from the safetensors of a folder, each worker reading its own rows; adapters begin as random numbers."""

    folder: Path
    seed: int

    def of(self, module: nn.Module, path: str) -> Mapping[str, Rows]:
        """Readers of the weights of a module. Raises: TrainingDataError if the folder lacks one that is no adapter's."""
        found, new = {}, False
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            for part in _ADAPTED:
                full = full.replace(part, "")
            if full in self._files:
                found[name] = self._reader(full)
            elif ".lora_" in full:
                new = True
            else:
                raise TrainingDataError(f"{self.folder.name}: no weight {full!r} in its safetensors")
        return found | (dict(Initialised(_adapter(path), self.seed).of(module, path)) if new else {})

    @cached_property
    def _files(self) -> dict[str, Path]:
        return weight_files(self.folder)

    def _reader(self, name: str) -> Rows:
        def read(rows: range) -> Tensor:
            with safe_open(self._files[name], framework="pt") as file:
                part: Tensor = file.get_slice(name)[rows.start : rows.stop]
                return part

        return read


def weight_files(folder: Path) -> dict[str, Path]:
    """Find the safetensors file of each weight in a Hugging Face folder, by name. Raises: TrainingDataError."""
    index = folder / _INDEX
    if index.exists():
        names = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in names.items()}
    single = folder / _SINGLE
    if not single.exists():
        raise TrainingDataError(f"the base has neither {_SINGLE} nor {_INDEX}: give a Hugging Face folder")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def new_network(folder: Path, lora: Lora | None) -> nn.Module:
    """Build the causal language model of a folder without weights, with adapters if asked; only what is learnt has gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM  # late: the extra `llm`

    config = AutoConfig.from_pretrained(folder)
    with without_weights():
        made: Any = AutoModelForCausalLM
        net: nn.Module = made.from_config(config, dtype=torch.float32)
        return net if lora is None else adapted(net, lora)


def adapted(net: Any, lora: Lora) -> nn.Module:
    """Put low-rank adapters into a network; its own weights get no gradients any more."""
    from peft import LoraConfig, get_peft_model  # late: the extra `llm`

    targets = lora.targets if isinstance(lora.targets, str) else [*lora.targets]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    found: nn.Module = get_peft_model(net, config)
    return found


def _adapter(path: str) -> Any:
    """Initialise an adapter as `peft` does: the first matrix at random, the second zero, so that nothing changes at first."""

    def initialise(module: nn.Module) -> None:
        reset(module)
        if ".lora_A." in path:
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # type: ignore[arg-type]  # a linear layer's
        else:
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]  # the same

    return initialise
