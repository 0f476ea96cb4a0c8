"""Weights of a Hugging Face folder, read by rows from its safetensors.

`safetensors.safe_open` maps a whole file as private memory that may be written. None of it is touched, but all of it counts where
memory is limited by what a process may ask for (`RLIMIT_DATA`, `vm.overcommit_memory=2`): a worker that could hold its shard
would need room for the file. Here the rows that are asked for are read, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from toque.functions.generative.errors import GenerativeError
from toque.functions.generative.safetensors_header import SafetensorsHeader, read_header
from toque.functions.training.errors import TrainingDataError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class WeightFile:
    """One file of safetensors, whose header is read once."""

    path: Path

    def shape(self, name: str) -> list[int]:
        """Whole shape of a weight. Raises: TrainingDataError."""
        return [*self._header.tensors[name].shape]

    def names(self) -> list[str]:
        """Names of the weights in the file. Raises: TrainingDataError."""
        return [*self._header.tensors]

    def whole(self, name: str) -> Tensor:
        """Read all rows of a weight. Raises: TrainingDataError."""
        return self.rows(name, range(next(iter(self.shape(name)), 1)))

    def rows(self, name: str, rows: range) -> Tensor:
        """Read some rows of a weight, all of one without dimensions. Raises: TrainingDataError."""
        said, shape = self._header.tensors[name], self.shape(name)
        if said.dtype not in _DTYPES:
            raise TrainingDataError(
                f"{self.path.name}: weight {name!r} is {said.dtype}; give a base in {', '.join(_DTYPES)}"
            )
        begin, end = said.data_offsets
        size = [len(rows), *shape[1:]] if shape else []
        part = torch.empty(size, dtype=_DTYPES[said.dtype])
        row_bytes = (end - begin) // shape[0] if shape and shape[0] else 0
        if part.numel():
            with self.path.open("rb") as file:
                file.seek(self._header.data_at + begin + rows.start * row_bytes)
                self._fill(file, part, name)
        return part

    def _fill(self, file: BinaryIO, part: Tensor, name: str) -> None:
        wanted = memoryview(part.reshape(-1).view(torch.uint8).numpy().data)
        if (got := file.readinto(wanted)) != len(wanted):  # type: ignore[attr-defined]  # a file on a disk has it
            raise TrainingDataError(
                f"{self.path.name} ends {len(wanted) - got} bytes too early, within weight {name!r}: register the base again"
            )

    @cached_property
    def _header(self) -> SafetensorsHeader:
        try:
            return read_header(self.path)
        except GenerativeError as error:
            raise TrainingDataError(str(error)) from error


def weight_files(folder: Path) -> dict[str, WeightFile]:
    """Find the file of each weight in a Hugging Face folder, by name. Raises: TrainingDataError."""
    index = folder / _INDEX
    if index.exists():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = {file: WeightFile(folder / file) for file in set(names.values())}
        return {name: files[file] for name, file in names.items()}
    if not (folder / _SINGLE).exists():
        raise TrainingDataError(f"the base has neither {_SINGLE} nor {_INDEX}: give a Hugging Face folder")
    single = WeightFile(folder / _SINGLE)
    return dict.fromkeys(single.names(), single)
