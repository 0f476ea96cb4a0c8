"""Training of a classifier of texts: its rows as tokens, the task it learns, and the Hugging Face folder that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from toque.functions.evaluation.meanings import Outcome
from toque.functions.evaluation.outcome_kinds import kind_for
from toque.functions.model_formats.matrices import text_matrix
from toque.functions.model_formats.text_classifier import texts_of
from toque.functions.runtime.context import context
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.llm.job import base_folder
from toque.functions.training.llm.network import Pretrained, classifier_tokenizer, new_classifier
from toque.functions.training.llm.settings import Tuner
from toque.functions.training.loop.distributed import TrainedNetwork, Worker, train_request
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.request import TrainingRequest
from toque.functions.training.splits import held_out_rows
from toque.functions.training.trainer import Trained
from toque.registry import Table, TableSnapshot

_BINARY = ("0", "1")


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """What is learnt from which rows: the columns of texts, the label, and its classes in the order of the answer."""

    training_set: TableSnapshot
    columns: tuple[str, ...]
    label: str
    outcome: Outcome
    classes: tuple[str, ...]

    @classmethod
    def of(cls, request: TrainingRequest) -> LabelledTexts:
        """Take what a request asks for. Raises: TrainingDataError without a training set, or if labels do not differ."""
        if request.training_set is None:
            raise TrainingDataError(
                f"model {request.model!r} needs a training set with columns {request.categorical}"
            )
        request.train_labels()  # refuses those that nothing can be learnt from
        classes = request.classes or _BINARY
        return cls(request.training_set, request.categorical, request.label, request.outcome, classes)

    def labels(self, rows: pa.Table) -> Tensor:
        """Labels of rows: (rows,) numbers of classes, or (rows, classes) of 0 and 1."""
        found = kind_for(self.outcome, self.classes).label(rows, self.label)
        return torch.from_numpy(np.ascontiguousarray(found, np.int64))


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Texts as tokens, with their labels. fields: what the network takes of each row, such as its tokens; fillers: of each field."""

    fields: dict[str, list[list[int]]]
    fillers: dict[str, int]
    labels: Tensor

    @classmethod
    def of(
        cls, tokenizer: Any, columns: Sequence[list[str]], labels: Tensor, *, taken: Sequence[str]
    ) -> TokenizedTexts:
        """Tokenize columns of texts, or of the first and second texts of pairs. taken: names of what the network takes."""
        tokens = tokenizer(*columns, truncation=True)
        fields = {name: [*values] for name, values in tokens.items() if name in taken}
        fillers = {name: tokenizer.pad_token_id if name == "input_ids" else 0 for name in fields}
        return cls(fields, fillers, labels)

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Select rows by their numbers: a tensor (rows, longest of them) for each field, and the labels."""
        numbers = rows.tolist()
        longest = max((len(next(iter(self.fields.values()))[n]) for n in numbers), default=0)
        found = []
        for name, values in self.fields.items():
            filled = torch.full((len(numbers), longest), self.fillers[name], dtype=torch.int64)
            for place, number in enumerate(numbers):
                filled[place, : len(values[number])] = torch.tensor(values[number], dtype=torch.int64)
            found.append(filled)
        return (*found, self.labels[rows])


@dataclass(frozen=True, slots=True)
class ClassifierTask:
    """Learning task of telling the class of a text, or its classes if it may have several."""

    train: TokenizedTexts
    valid: TokenizedTexts

    @property
    def train_rows(self) -> int:
        """Number of texts that are learnt from."""
        return len(self.train.labels)

    @property
    def valid_rows(self) -> int:
        """Number of texts that are held out for validation."""
        return len(self.valid.labels)

    @property
    def units(self) -> dict[str, int]:
        """Nothing beside rows, since texts differ in length."""
        return {}

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Training rows as the network's fields, and labels."""
        return self.train.take(rows)

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Validation rows as the network's fields, and labels."""
        return self.valid.take(rows)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Log loss in nats a text, of several labels the mean over the classes."""
        *fields, labels = batch
        logits = module(**dict(zip(self.train.fields, fields, strict=True))).logits.float()
        if labels.ndim == 1:
            return cross_entropy(logits, labels, reduction=reduction)
        rows = binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
        return rows.sum() if reduction == "sum" else rows.mean()


@dataclass(frozen=True, slots=True)
class ClassifierWork:
    """Training of a classifier as every worker does it."""

    spec: Tuner
    texts: LabelledTexts

    def __call__(self, worker: Worker) -> TrainedNetwork:
        """Train as one worker of the group. Raises: TrainingError."""
        spec, params, texts = self.spec, self.spec.params, self.texts
        registry = context().registry()
        rows = Table(registry.store, texts.training_set.name).read(version=texts.training_set.version)
        with base_folder(registry, spec) as folder:
            net, head = new_classifier(
                folder, spec.lora, texts.classes, several=texts.outcome == "multilabel"
            )
            task = classifier_task(spec, folder, texts, rows, head.fields)
            trainer = Trainer(net, task, params, worker.group, Pretrained(folder, params.seed, head))
            return worker.fit(trainer, rows=rows.num_rows, frozen=False)


def classifier_task(
    spec: Tuner, folder: Path, texts: LabelledTexts, rows: pa.Table, taken: Sequence[str]
) -> ClassifierTask:
    """Tokenize the rows of a training set, and split them. taken: names of what the network takes. Raises: TrainingDataError."""
    tokenizer = classifier_tokenizer(folder, spec.length)
    held = held_out_rows(rows, valid_fraction=spec.valid_fraction, by=spec.split, seed=spec.seed)
    parts = []
    for chosen in (~held, held):
        part = rows.filter(pa.array(chosen))
        columns = texts_of(text_matrix(part, texts.columns))
        parts.append(TokenizedTexts.of(tokenizer, columns, texts.labels(part), taken=taken))
    return ClassifierTask(*parts)


def train_classifier(spec: Tuner, request: TrainingRequest) -> Trained:
    """Train what a request asks for, and write its folder; it is measured as it will be served. Raises: TrainingError."""
    texts = LabelledTexts.of(request)
    columns, classes = [*texts.columns], [*texts.classes]
    key = spec.checkpoint_key(
        data=[texts.training_set.model_dump(), columns, texts.label, texts.outcome, classes],
        rows=[spec.length, spec.split, spec.valid_fraction, spec.seed],
    )
    trained = train_request(request, key, spec.params, ClassifierWork(spec, texts))
    with base_folder(request.registry, spec) as folder:
        write_classifier(folder, request.folder, spec, texts, trained.weights)
    return Trained(best_epoch=trained.best_epoch)


def write_classifier(
    base: Path, folder: Path, spec: Tuner, texts: LabelledTexts, weights: dict[str, Tensor]
) -> None:
    """Write base and learnt weights as one Hugging Face folder, adapters merged. Raises: TrainingError if a weight has no place."""
    net, head = new_classifier(base, spec.lora, texts.classes, several=texts.outcome == "multilabel")
    whole: Any = SingleProcess().place(net, Pretrained(base, spec.params.seed, head), half=False)
    unknown = whole.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise TrainingError(f"{spec.base} has no place for learnt weights such as {unknown[0]!r}")
    if spec.lora is not None:
        whole = whole.merge_and_unload()
    whole.save_pretrained(folder)
    classifier_tokenizer(base, spec.length).save_pretrained(folder)
