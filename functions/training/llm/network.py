"""Networks of Hugging Face folders: built without weights, with or without adapters, filled from safetensors by rows.

`safetensors.safe_open` maps a whole file as private memory that may be written. None of it is touched, but all of it counts where
memory is limited by what a process may ask for (`RLIMIT_DATA`, `vm.overcommit_memory=2`): a worker that could hold its shard
would need room for the file. Here the rows that are asked for are read, and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from toque.functions.generative.prompt import GenerativeError
from toque.functions.generative.version_files import SafetensorsHeader, read_header
from toque.functions.model_formats.text_classifier import fields_of
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.llm.settings import Lora
from toque.functions.training.loop.first_weights import Initialised, Rows, Stored, reset, without_weights

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# what adapters put into the names of the weights that they adapt, or learn whole
_ADAPTED = ("base_model.model.", "base_layer.", "modules_to_save.default.", "original_module.")


@dataclass(frozen=True, slots=True)
class Head:
    """What a network has beside its body, of which a folder may have no weights.

    body: name of the body; reset: initialises a module; fields: what the network takes of a tokenizer.
    """

    body: str
    reset: Callable[[nn.Module], None]
    fields: tuple[str, ...]

    def may_begin(self, name: str) -> bool:
        """Whether a weight may begin as random numbers: outside the body, or in its pooler, which language models do without."""
        return not name.startswith(f"{self.body}.") or ".pooler." in name


@dataclass(frozen=True)
class Pretrained(Stored):
    """First weights from the safetensors of a folder, each worker reading its own rows; adapters begin as random numbers.

    head: of a network that has more than the folder; None: the folder must have all its weights.
    """

    folder: Path
    seed: int
    head: Head | None = None

    def of(self, module: nn.Module, path: str) -> Mapping[str, Rows]:
        """Readers of the weights of a module. Raises: TrainingDataError if the folder lacks one that is no adapter's or head's."""
        found: dict[str, Rows] = {}
        initialise: Callable[[nn.Module], None] | None = None
        for name, weight in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            for part in _ADAPTED:
                full = full.replace(part, "")
            stored = self._stored(full, weight.shape)
            if stored is not None:
                found[name] = self._reader(stored)
            elif ".lora_" in full:
                initialise = _adapter(path)
            elif self.head is not None and self.head.may_begin(full):
                initialise = self.head.reset
            else:
                raise TrainingDataError(f"{self.folder.name}: no weight {full!r} in its safetensors")
        new = Initialised(initialise, self.seed).of(module, path) if initialise else {}
        return {**new, **found}

    def _stored(self, name: str, shape: torch.Size) -> str | None:
        """Name of a weight in the folder, which may be that of a body alone; None without one, or if a head has another size."""
        body = f"{self.head.body}." if self.head is not None else ""
        found = next((each for each in (name, name.removeprefix(body)) if each in self._files), None)
        if found is None or self.head is None or not self.head.may_begin(name):
            return found
        return found if self._files[found].shape(found) == [*shape] else None

    @cached_property
    def _files(self) -> dict[str, WeightFile]:
        return weight_files(self.folder)

    def _reader(self, name: str) -> Rows:
        return partial(self._files[name].rows, name)


def new_network(folder: Path, lora: Lora | None) -> nn.Module:
    """Build the causal language model of a folder without weights, with adapters if asked; only what is learnt has gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM  # late: the extra `llm`

    config = AutoConfig.from_pretrained(folder)
    with without_weights():
        made: Any = AutoModelForCausalLM
        net: nn.Module = made.from_config(config, dtype=torch.float32)
        return net if lora is None else adapted(net, lora)


def new_classifier(
    folder: Path, lora: Lora | None, classes: Sequence[str], *, several: bool
) -> tuple[nn.Module, Head]:
    """Build the classifier of texts on the network of a folder, without weights, and say what it has beside the folder's body.

    classes: in the order of the answer; several: whether a text may have several of them, or none.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification  # late: the extra `llm`

    config = AutoConfig.from_pretrained(
        folder,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    config.pad_token_id = classifier_tokenizer(folder).pad_token_id
    with without_weights():
        made: Any = AutoModelForSequenceClassification
        net = made.from_config(config, dtype=torch.float32)
        begin = net._init_weights  # noqa: SLF001 - how transformers begins a weight
        head = Head(net.base_model_prefix, begin, fields_of(net))
        return (net if lora is None else adapted(net, lora, "SEQ_CLS")), head


def classifier_tokenizer(folder: Path, length: int | None = None) -> Any:
    """Tokenizer of a folder, which cuts texts at `length` tokens and fills shorter ones up; one without a filler takes its end."""
    from transformers import AutoTokenizer  # late: the extra `llm`

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise TrainingDataError(
                "the base's tokenizer has neither a token to fill up with nor one that ends a text"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if length is not None:
        tokenizer.model_max_length = length
    return tokenizer


def adapted(net: Any, lora: Lora, kind: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM") -> nn.Module:
    """Put low-rank adapters into a network; its own weights get no gradients any more, but for the head of a classifier."""
    from peft import LoraConfig, get_peft_model  # late: the extra `llm`

    targets = lora.targets if isinstance(lora.targets, str) else [*lora.targets]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type=kind,
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
