"""Pairs of answers of which one is preferred, and the loss that makes the model prefer it too (DPO).

Source: Rafailov et al., Direct Preference Optimization, 2023.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.llm.texts import IGNORED, Tokenizer, Tokens, tokens_of_chat
from toque.functions.training.loop.process_groups.process_group import ProcessGroup
from toque.functions.training.loop.task import CountedRows
from toque.functions.training.loop.training_loop import rows_of_worker

Pair = tuple[Tokens, Tokens]


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
