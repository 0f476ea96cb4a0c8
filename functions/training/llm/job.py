"""Fine-tuning of a language model, also by preferences: trained here or on the cluster, merged, written as a folder.

The folder is one of Hugging Face. Pairs of answers of which one is preferred are learnt by the loss of DPO (Rafailov et al.,
Direct Preference Optimization, 2023).
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from toque.functions.model_formats.matrices import named_column
from toque.functions.runtime.context import context
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.llm.gguf_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from toque.functions.training.llm.network import Pretrained, adapted, new_network
from toque.functions.training.llm.settings import FineTuneSettings, Tuner
from toque.functions.training.llm.texts import (
    IGNORED,
    TextTask,
    Tokenizer,
    Tokens,
    answers_beyond,
    packed,
    tokens_of_chat,
    tokens_of_text,
    within,
)
from toque.functions.training.loop.distributed import TrainedNetwork, Worker, train_request
from toque.functions.training.loop.process_group import ProcessGroup
from toque.functions.training.loop.task import CountedRows
from toque.functions.training.loop.training_loop import Trainer, rows_of_worker
from toque.functions.training.request import LOSS, TrainingRequest
from toque.functions.training.splits import held_out_rows
from toque.functions.training.trainer import Trained
from toque.registry import Registry, Run, Signature, Table, TableSnapshot, TensorSpec

_PARITY_ATOL = 1e-3  # between answers with merged adapters and with separate ones
_logger = logging.getLogger(__name__)
_TEXT = {"datatype": "BYTES", "shape": [-1, 1]}
SIGNATURE = Signature(
    inputs=[TensorSpec.model_validate({"name": "prompt", **_TEXT})],
    outputs=[TensorSpec.model_validate({"name": "text", **_TEXT})],
)
Pair = tuple[Tokens, Tokens]


@dataclass(frozen=True, slots=True)
class FineTuneWork:
    """Fine-tuning as every worker does it."""

    run: Run
    spec: FineTuneSettings
    training_set: TableSnapshot

    def __call__(self, worker: Worker) -> TrainedNetwork:
        """Train as one worker of the group. Raises: TrainingError."""
        spec, params, group = self.spec, self.spec.params, worker.group
        registry = context().registry()
        with base_folder(registry, spec) as folder:
            rows = Table(registry.store, self.training_set.name).read(version=self.training_set.version)
            task = preference_task(spec, folder, rows) if spec.preference else text_task(spec, folder, rows)
            source = Pretrained(folder, params.seed)
            trainer = Trainer(new_network(folder, spec.lora), task, params, group, source)
            # before a checkpoint is read: the weights are still the base's
            if isinstance(task, PreferenceTask):
                task.refer_to(trainer.net, group, rows=trainer.piece_rows, half=params.precision == "bf16")
            if group.rank == 0 and task.beyond:
                _logger.warning(
                    "%d answers do not end within length=%d tokens and are not learnt, or not to their end",
                    task.beyond,
                    spec.length,
                )
                self.run.log_metrics({"answers_beyond_length": float(task.beyond)})
            return worker.fit(trainer, rows=rows.num_rows, frozen=False)


def train_model(spec: FineTuneSettings, request: TrainingRequest) -> Trained:
    """Fine-tune what a request asks for, and write its files. Raises: TrainingError."""
    if request.training_set is None:
        raise TrainingError("a fine-tune needs a training set")
    rows = [spec.column, spec.length, spec.split, spec.valid_fraction, spec.seed]
    preference = spec.preference.model_dump(mode="json") if spec.preference else None
    key = spec.checkpoint_key(data=[request.training_set.model_dump(), *rows], preference=preference)
    work = FineTuneWork(request.run, spec, request.training_set)
    trained = train_request(request, key, spec.params, work)
    with base_folder(request.registry, spec) as folder:
        write_folder(folder, request.folder, spec, trained.weights)
    return Trained(
        metrics={LOSS: trained.best_loss},
        best_epoch=trained.best_epoch,
        rows=trained.rows,
        signature=SIGNATURE,
    )


def text_task(spec: FineTuneSettings, folder: Path, rows: pa.Table) -> TextTask:
    """Tokenize the rows of a training set, split and pack them. Raises: TrainingDataError."""
    from transformers import AutoTokenizer  # late: the extra `llm`

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    column, beyond = named_column(rows, spec.column).to_pylist(), 0
    if spec.column == "messages":
        whole = [tokens_of_chat(tokenizer, conversation) for conversation in column]
        beyond = sum(answers_beyond(text, spec.length) for text in whole)
        texts = [within(text, spec.length) for text in whole]
    else:
        texts = [tokens_of_text(tokenizer, text) for text in column]
    held = held_out_rows(rows, valid_fraction=spec.valid_fraction, by=spec.split, seed=spec.seed)
    return TextTask(
        packed((text for text, out in zip(texts, held, strict=True) if not out), spec.length),
        packed((text for text, out in zip(texts, held, strict=True) if out), spec.length),
        beyond,
    )


def preference_task(spec: FineTuneSettings, folder: Path, rows: pa.Table) -> PreferenceTask:
    """Tokenize the pairs of answers of a training set, and split them. Raises: TrainingDataError."""
    from transformers import AutoTokenizer  # late: the extra `llm`

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    columns = [named_column(rows, name).to_pylist() for name in ("messages", "chosen", "rejected")]
    pairs = [pair_of(tokenizer, *each) for each in zip(*columns, strict=True)]
    held = held_out_rows(rows, valid_fraction=spec.valid_fraction, by=spec.split, seed=spec.seed)
    assert spec.preference is not None  # noqa: S101 - who calls has looked
    return PreferenceTask(
        Pairs.of((pair for pair, out in zip(pairs, held, strict=True) if not out), spec.length),
        Pairs.of((pair for pair, out in zip(pairs, held, strict=True) if out), spec.length),
        spec.preference.beta,
    )


def write_folder(base: Path, folder: Path, spec: FineTuneSettings, weights: dict[str, Tensor]) -> None:
    """Write base and learnt weights as one Hugging Face folder in the base's number format, adapters merged and also beside it.

    Raises: TrainingError if a learnt weight has no place, or the merged model answers otherwise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # late: the extra `llm`

    net: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stored = (
        AutoConfig.from_pretrained(base).dtype or torch.float32
    )  # engines serve the number format that a folder names
    net.eval()
    whole: Any = net if spec.lora is None else adapted(net, spec.lora).eval()
    unknown = whole.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise TrainingError(f"{spec.base} has no place for learnt weights such as {unknown[0]!r}")
    tokens = torch.arange(1, 9)[None] % net.config.vocab_size
    if spec.lora is not None:
        _write_adapter(folder, whole, spec, weights)
    with torch.inference_mode():
        wanted = whole(input_ids=tokens).logits
        if spec.lora is not None:
            whole = whole.merge_and_unload()
        gap = float((whole(input_ids=tokens).logits - wanted).abs().max())
    if not gap <= _PARITY_ATOL * max(1.0, float(wanted.abs().max())):
        raise TrainingError(
            f"the merged model's answers differ by {gap:.3g} from the trained ones: not registered"
        )
    whole.to(stored).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _write_adapter(folder: Path, net: Any, spec: FineTuneSettings, weights: dict[str, Tensor]) -> None:
    """Write the adapters alone, for engines that serve many beside one base."""
    (folder / ADAPTER_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    config = net.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = spec.base, True
    config.save_pretrained((folder / ADAPTER_CONFIG).parent)
    named = {name.replace(".default.", "."): value.contiguous() for name, value in weights.items()}
    save_file(named, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


@contextmanager
def base_folder(registry: Registry, spec: Tuner) -> Iterator[Path]:
    """Fetch the base version's files within a folder of their own."""
    name, version = spec.base_version
    with tempfile.TemporaryDirectory(prefix="toque-base-") as place:
        folder = Path(place) / "base"
        registry.download(name, version, to=folder)
        yield folder


def pair_of(tokenizer: Tokenizer, conversation: str, chosen: str, rejected: str) -> Pair:
    """Tokens of a conversation, JSON, with the chosen answer at its end, and with the rejected one. Raises: TrainingDataError."""
    try:
        messages = json.loads(conversation)
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"messages={conversation[:80]!r} is not JSON: {error}") from error
    if not isinstance(messages, list):
        raise TrainingDataError(f'messages={conversation[:80]!r}: want a list of {{"role": …, "content": …}}')
    one, other = (
        tokens_of_chat(tokenizer, json.dumps([*messages, {"role": "assistant", "content": answer}]))
        for answer in (chosen, rejected)
    )
    return one, other


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs as tensors: ids and labels (pairs, 2, length), the chosen first; reference: (pairs, 2) of the base, nats, once it is known.

    tokens: of all texts, without what fills them up; beyond: pairs that were left out, since an answer does not fit.
    """

    ids: Tensor
    labels: Tensor
    reference: Tensor
    tokens: int
    beyond: int

    @classmethod
    def of(cls, pairs: Iterable[Pair], length: int) -> Pairs:
        """Fill pairs up to `length` tokens; those of which an answer does not fit are left out. Raises: TrainingDataError if none is left."""
        pairs = [*pairs]
        fit = [pair for pair in pairs if all(len(text.ids) <= length for text in pair)]
        if not fit:
            raise TrainingDataError(f"no pair of answers fits length={length}: raise it, or give more rows")
        ids = torch.zeros(len(fit), 2, length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for number, pair in enumerate(fit):
            for place, text in enumerate(pair):
                ids[number, place, : len(text.ids)] = torch.tensor(text.ids)
                labels[number, place, : len(text.ids)] = torch.tensor(text.labels)
        tokens = sum(len(text.ids) for pair in fit for text in pair)
        return cls(ids, labels, torch.zeros(len(fit), 2), tokens, len(pairs) - len(fit))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select pairs by their numbers."""
        return self.ids[rows], self.labels[rows], self.reference[rows]


@dataclass(frozen=True, slots=True)
class PreferenceTask(CountedRows):
    """Learning task of preferring the chosen answer. beta: how dear it is to leave the base."""

    train: Pairs
    valid: Pairs
    beta: float

    @property
    def beyond(self) -> int:
        """Number of pairs that were left out, since an answer does not fit."""
        return self.train.beyond + self.valid.beyond

    @property
    def units(self) -> dict[str, float]:
        """Number of tokens of texts in a pair, on average."""
        return {"tokens": self.train.tokens / len(self.train)}

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Training pairs as tokens, labels and what the base made of them."""
        return self.train.take(rows)

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Validation pairs as tokens, labels and what the base made of them."""
        return self.valid.take(rows)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Loss of each pair in nats: .69 where the model prefers neither more than the base does."""
        ids, labels, reference = batch
        gain = log_likelihoods(module, ids, labels) - reference
        each = -logsigmoid(self.beta * (gain[:, 0] - gain[:, 1]))
        return each.sum() if reduction == "sum" else each.mean()

    def refer_to(self, base: nn.Module, group: ProcessGroup, *, rows: int, half: bool) -> None:
        """Ask the base, before it learns, for the likelihoods of all answers; every worker has to call it.

        rows: pairs at a time over all workers; half: in bfloat16, as the steps.
        """
        base.eval()
        kind = torch.device(group.device).type
        for part in (self.train, self.valid):
            found = torch.zeros(len(part), 2, device=group.device)
            for start in range(0, len(part), rows):
                own, counted = rows_of_worker(range(start, min(start + rows, len(part))), group)
                ids, labels, _ = (each.to(group.device) for each in part.take(own))
                with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=half):
                    likelihoods = log_likelihoods(base, ids, labels).float()
                if counted:
                    found[own.to(group.device)] = likelihoods
            part.reference.copy_(group.all_reduce_sum(found).cpu() / group.copies)


def log_likelihoods(module: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Log likelihood in nats of what is learnt of each text: (pairs, 2) of ids and labels (pairs, 2, length)."""
    flat, wanted = ids.flatten(0, 1), labels.flatten(0, 1)[:, 1:]
    positions = torch.arange(ids.shape[2], device=ids.device).expand_as(flat)
    logits = module(input_ids=flat, position_ids=positions, use_cache=False).logits
    each = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -each.view(wanted.shape).sum(1).view(len(ids), 2)
