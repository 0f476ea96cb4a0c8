"""GGUF files of fine-tunes: an adapter, or whole weights, by the names and in the order that llama.cpp reads.

Vocabulary and chat template are those of the GGUF file of the base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.llm.network import WeightFile, weight_files

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "write_adapter", "write_weights"]

ADAPTER_CONFIG: Final = "adapter/adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter/adapter_model.safetensors"
"""Files of a fine-tune's version that hold its adapter as `peft` has it."""
_ARCHITECTURE: Final = "llama"
_BLOCK: Final = 32
"""Values that an 8-bit block has; rows of another length stay in 16 bits."""
_TURNED: Final = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""Matrices whose rows llama.cpp has in another order, for its rotation of positions, and the field with their number of heads."""
_SIZES: Final = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
"""Fields of a GGUF file by the entries of a Hugging Face `config.json`."""
_LEFT_OUT: Final = frozenset(
    f"general.{name}" for name in ("architecture", "file_type", "name", "basename", "size_label", "finetune")
)
"""What a file says of itself, which is not so of another."""
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_BLOCK_NUMBER: Final = re.compile(r"^blk\.\d+\.")
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
    """Write the weights of a Hugging Face folder as a GGUF file with the vocabulary and chat template of the base.

    Sizes are the folder's, which may be a network from random weights. A weight has 8 bits where the base's has 8 or fewer.
    Raises: TrainingDataError if the base is of another architecture, or the folder has another vocabulary or other weights by name.
    """
    from gguf import GGUFWriter, quants  # late: the extra `llm`

    known = _Base(base, folder)
    writer = GGUFWriter(to, _ARCHITECTURE)
    for field in known.reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in _LEFT_OUT | known.sizes.keys():
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, items[-1] if items else None)
    for name, size in known.sizes.items():
        if isinstance(size, int):
            writer.add_uint32(name, size)
        else:
            writer.add_float32(name, size)
    for name, (theirs, file) in sorted(known.placed(weight_files(folder)).items()):
        weight = known.turned(name, _read(theirs, file))
        kind = _kept_type(known.like(name), weight.shape[-1])
        writer.add_tensor(name, quants.quantize(weight, kind), raw_dtype=kind)
    _finish(writer)


class _Base:
    """The GGUF file of a base, and how weights of `transformers` are named and ordered in it. Raises: TrainingDataError.

    folder: a Hugging Face folder whose sizes stand in place of the file's own.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map  # late: the extra `llm`

        self.path, self.reader = path, GGUFReader(path)
        self.sizes = {} if folder is None else _sizes(json.loads((folder / "config.json").read_text()))
        architecture = self._field("general.architecture")
        if architecture != _ARCHITECTURE:
            raise TrainingDataError(
                f"{path.name} is of the architecture {architecture!r}, and only {_ARCHITECTURE!r} is converted here: use "
                "llama.cpp's converters, and register what they write"
            )
        self.tensors = {each.name: each for each in self.reader.tensors}
        tokens, rows = self.sizes.get(f"{_ARCHITECTURE}.vocab_size"), self._shape(_EMBEDDING)[0]
        if tokens not in {None, rows}:
            raise TrainingDataError(
                f"vocab_size is {tokens}, and {path.name} has {rows} tokens: train with its tokenizer"
            )
        self._names = get_tensor_name_map(MODEL_ARCH.LLAMA, int(self._field(f"{_ARCHITECTURE}.block_count")))

    def name_of(self, name: str) -> str:
        """Name in the file of a weight of `transformers`."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise TrainingDataError(f"{self.path.name}: no name is known for the weight {name!r}")
        return str(found)

    def placed(self, files: Mapping[str, WeightFile]) -> dict[str, tuple[str, WeightFile]]:
        """Give each file of a weight its name here. Raises: TrainingDataError if one has no place, or one is missing."""
        found = {self.name_of(name): (name, file) for name, file in files.items()}
        blocks = range(int(self._field(f"{_ARCHITECTURE}.block_count")))
        wanted = {_BLOCK_NUMBER.sub(f"blk.{block}.", name) for name in self.tensors for block in blocks}
        if unknown := sorted(found.keys() - wanted - {_OUTPUT}):
            raise TrainingDataError(
                f"{self.path.name} has no place for the fine-tune's weights {unknown[:3]}"
            )
        if missing := sorted(wanted - found.keys()):
            raise TrainingDataError(f"{self.path.name} has weights that the fine-tune lacks: {missing[:3]}")
        return found

    def like(self, name: str) -> Any:
        """Weight of the file by this name; else that of its first block, or what an output is tied to."""
        name = name if name in self.tensors else _BLOCK_NUMBER.sub("blk.0.", name)
        return self.tensors[_EMBEDDING if name == _OUTPUT and name not in self.tensors else name]

    def turned(self, name: str, weight: Weights) -> Weights:
        """Order the rows of a weight as the file has them."""
        rows = weight.shape[0]
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
        axis, does = (0, "writes") if part == "B" else (1, "reads")
        if weight.shape[axis] != self._shape(named)[axis]:
            raise TrainingDataError(
                f"{self.path.name}: {named!r} has shape {self._shape(named)}, the adapter {does} {weight.shape[axis]}"
            )
        return f"{named}.lora_{part.lower()}", self.turned(named, weight) if axis == 0 else weight

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
        return self.sizes[name] if name in self.sizes else self.reader.fields[name].contents()


def _sizes(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Read the sizes of a Llama from its Hugging Face `config.json`, by the fields of a GGUF file. Raises: TrainingDataError."""
    if missing := sorted({*_SIZES.values()} - config.keys()):
        raise TrainingDataError(
            f"config.json has no {missing[0]!r}: only folders of Llama's build are converted here; register what llama.cpp's converters write"
        )
    found = {field: config[entry] for field, entry in _SIZES.items()}
    found["rope.dimension_count"] = found["attention.key_length"] = found["attention.value_length"] = (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    rope = config.get("rope_parameters") or config
    found["rope.freq_base"] = float(rope.get("rope_theta", 10_000.0))
    return {f"{_ARCHITECTURE}.{field}": size for field, size in found.items()}


def _kept_type(tensor: Any, columns: int) -> Any:
    """Choose how a weight of `columns` is stored: as the base has it, but with 8 bits where that has fewer."""
    from gguf import GGMLQuantizationType as Kind  # late: the extra `llm`

    if tensor.tensor_type in {Kind.F32, Kind.F16, Kind.BF16}:
        return tensor.tensor_type
    return Kind.Q8_0 if columns % _BLOCK == 0 else Kind.F16


def _read(name: str, file: WeightFile) -> Weights:
    weight: Weights = file.whole(name).float().numpy()
    return weight


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
