"""GGUF files of fine-tunes: an adapter, or whole weights, by the names and in the order that llama.cpp reads.

Vocabulary, chat template and sizes are those of the GGUF file of the base: a fine-tune changes weights alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from functions.training.errors import TrainingDataError
from functions.training.llm.weight_files import WeightFile, weight_files

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "write_adapter", "write_weights"]

ADAPTER_CONFIG: Final = "adapter/adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter/adapter_model.safetensors"
"""Files of a fine-tune's version that hold its adapter as `peft` has it."""
_ARCHITECTURE: Final = "llama"
_BLOCK: Final = 32
"""Values that an 8-bit block has; rows of another length stay in 16 bits."""
_TURNED: Final = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""Matrices whose rows llama.cpp has in another order, for its rotation of positions, and the field with their number of heads."""
_NORMS_RTOL: Final = 1e-2
Weights = npt.NDArray[Any]


def write_adapter(folder: Path, base: Path, to: Path) -> None:
    """Write the adapter in a fine-tune's folder as a GGUF file for the base.

    Raises: TrainingDataError if the base is of another architecture, or not the one that the fine-tune began with.
    """
    from gguf import GGUFType, GGUFWriter, Keys  # late: the extra `llm`

    known = _Base(base)
    known.check_same_norms(folder)
    writer = GGUFWriter(to, _ARCHITECTURE)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    alpha = json.loads((folder / ADAPTER_CONFIG).read_text())["lora_alpha"]
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(alpha))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            writer.add_tensor(
                *known.adapter(f"{layer}.weight", part[0], file.get_tensor(name).float().numpy())
            )
    _finish(writer)


def write_weights(folder: Path, base: Path, to: Path) -> None:
    """Write the weights of a Hugging Face folder as a GGUF file, in 8 bits where the base has 8 or fewer.

    Raises: TrainingDataError if the base is of another architecture, or has other weights by name or shape.
    """
    from gguf import GGUFWriter, quants  # late: the extra `llm`

    known = _Base(base)
    writer = GGUFWriter(to, _ARCHITECTURE)
    for field in known.reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in {
            "general.architecture",
            "general.file_type",
        }:
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, items[-1] if items else None)
    files = {known.name_of(name): (name, file) for name, file in weight_files(folder).items()}
    if unknown := sorted(files.keys() - known.tensors.keys()):
        raise TrainingDataError(f"{base.name} has no place for the fine-tune's weights {unknown[:3]}")
    for name, tensor in known.tensors.items():
        if name not in files:
            raise TrainingDataError(f"{base.name} has a weight {name!r}, and the fine-tune none")
        kind = _kept_type(tensor)
        writer.add_tensor(
            name, quants.quantize(known.turned(name, _read(*files[name])), kind), raw_dtype=kind
        )
    _finish(writer)


class _Base:
    """The GGUF file of a base, and how weights of `transformers` are named and ordered in it. Raises: TrainingDataError."""

    def __init__(self, path: Path) -> None:
        from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map  # late: the extra `llm`

        self.path, self.reader = path, GGUFReader(path)
        architecture = self._field("general.architecture")
        if architecture != _ARCHITECTURE:
            raise TrainingDataError(
                f"{path.name} is of the architecture {architecture!r}, and only {_ARCHITECTURE!r} is converted here: use "
                "llama.cpp's converters, and register what they write"
            )
        self.tensors = {each.name: each for each in self.reader.tensors}
        self._names = get_tensor_name_map(MODEL_ARCH.LLAMA, int(self._field(f"{_ARCHITECTURE}.block_count")))

    def name_of(self, name: str) -> str:
        """Name in the file of a weight of `transformers`."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise TrainingDataError(f"{self.path.name}: no name is known for the weight {name!r}")
        return str(found)

    def turned(self, name: str, weight: Weights) -> Weights:
        """Order the rows of a weight as the file has them. Raises: TrainingDataError if its shape is another."""
        rows = self._shape(name)[0]
        if weight.shape[0] != rows or (weight.ndim == 1) != (len(self._shape(name)) == 1):
            raise TrainingDataError(
                f"{self.path.name}: {name!r} has shape {self._shape(name)}, the fine-tune's {weight.shape}"
            )
        field = next((field for part, field in _TURNED.items() if f".{part}." in name), None)
        if field is None:
            return np.ascontiguousarray(weight)
        heads = int(self._field(f"{_ARCHITECTURE}.{field}"))
        halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))

    def adapter(self, name: str, part: str, weight: Weights) -> tuple[str, Weights]:
        """Name and order one of the two matrices of an adapter: A reads what the weight reads, B writes what it writes."""
        named = self.name_of(name)
        if named not in self.tensors:
            raise TrainingDataError(f"{self.path.name} has no weight {named!r}, which the adapter changes")
        if part == "B":
            return f"{named}.lora_b", self.turned(named, weight)
        if weight.shape[1] != self._shape(named)[1]:
            raise TrainingDataError(
                f"{self.path.name}: {named!r} has shape {self._shape(named)}, the adapter reads {weight.shape[1]}"
            )
        return f"{named}.lora_a", np.ascontiguousarray(weight)

    def check_same_norms(self, folder: Path) -> None:
        """Check that a fine-tune by adapters began with this base: its norms, which it did not change, are the same."""
        for name, file in weight_files(folder).items():
            named = self.name_of(name)
            if not named.endswith("norm.weight"):
                continue
            theirs = self.tensors.get(named)
            if theirs is None or not np.allclose(
                theirs.data, _read(name, file), rtol=_NORMS_RTOL, atol=_NORMS_RTOL
            ):
                raise TrainingDataError(
                    f"{self.path.name} is not the base of this fine-tune: {named!r} differs"
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def _field(self, name: str) -> Any:
        return self.reader.fields[name].contents()


def _kept_type(tensor: Any) -> Any:
    """Choose how a weight is stored: as the base has it, but with 8 bits where that has fewer."""
    from gguf import GGMLQuantizationType as Kind  # late: the extra `llm`

    if tensor.tensor_type in {Kind.F32, Kind.F16, Kind.BF16}:
        return tensor.tensor_type
    return Kind.Q8_0 if int(tensor.shape[0]) % _BLOCK == 0 else Kind.F16


def _read(name: str, file: WeightFile) -> Weights:
    weight: Weights = file.whole(name).float().numpy()
    return weight


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
