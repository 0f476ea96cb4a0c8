"""Texts and conversations as rows of tokens, packed end to end, with the tokens that are learnt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.loop.task import CountedRows

IGNORED = -100  # label of a token that is read but not learnt, as torch and transformers have it


class Tokenizer(Protocol):
    """What is used of a tokenizer of `transformers`."""

    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokens of a text, as numbers."""

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> Any:
        """Tokens of a conversation, as the model was taught to read it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one text, and their labels: the token itself, or `IGNORED`."""

    ids: list[int]
    labels: list[int]


def tokens_of_text(tokenizer: Tokenizer, text: str) -> Tokens:
    """Tokens of a text and of its end, all of which are learnt."""
    ids = [*tokenizer(text)["input_ids"]]
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)
    return Tokens(ids, [*ids])


def tokens_of_chat(tokenizer: Tokenizer, conversation: str) -> Tokens:
    """Tokens of a conversation by the model's chat template; the assistant's messages are learnt, and what ends each.

    conversation: JSON, a list of {"role": …, "content": …}. Raises: TrainingDataError if it is none, has no answer, or the
    template changes what came before when a message is added.
    """
    messages = _messages(conversation)
    ids: list[int] = _template(tokenizer, messages)
    labels = [IGNORED] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, messages[:place], add_generation_prompt=True)
        after = _template(tokenizer, messages[: place + 1])
        if ids[: len(after)] != after or after[: len(before)] != before:
            raise TrainingDataError(
                f"the chat template writes the first {place + 1} messages otherwise when more follow: answers cannot be told "
                "apart; give the model a template that only adds"
            )
        labels[len(before) : len(after)] = after[len(before) :]
    if all(label == IGNORED for label in labels):
        raise TrainingDataError(
            f"a conversation without an answer: {conversation[:80]!r}; there is nothing to learn"
        )
    return Tokens(ids, labels)


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows (rows, length) int64. positions: of each token in its own text, by which a text sees no other.

    unused: places that hold no text.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    unused: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Number of tokens of texts in all rows."""
        return self.ids.numel() - self.unused

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select rows by their numbers."""
        return self.ids[rows], self.labels[rows], self.positions[rows]


def packed(texts: Iterable[Tokens], length: int) -> Rows:
    """Pack texts end to end into rows, in their order; one that does not fit begins a row, and one that is too long is cut into pieces.

    Raises: TrainingDataError if there are none, or none has anything to learn.
    """
    rows: list[list[Tokens]] = []
    room, used = 0, 0
    for piece in chain.from_iterable(pieces_of(text, length) for text in texts):
        if all(label == IGNORED for label in piece.labels[1:]):
            continue
        if len(piece.ids) > room:
            rows.append([])
            room = length
        rows[-1].append(piece)
        room, used = room - len(piece.ids), used + len(piece.ids)
    if not rows:
        raise TrainingDataError(
            f"no text has a token to learn within length={length}: raise it, or give more rows"
        )
    filled = torch.zeros((3, len(rows), length), dtype=torch.int64)
    filled[1] = IGNORED
    for number, row in enumerate(rows):
        _fill(filled[:, number], row, length)
    return Rows(filled[0], filled[1], filled[2], unused=len(rows) * length - used)


def pieces_of(text: Tokens, length: int) -> Iterator[Tokens]:
    """Cut a text into pieces of at most `length` tokens, each of which begins with the last token of the one before.

    So every token but the first of the text is predicted once, since the first of a piece is not.
    """
    for start in range(0, max(1, len(text.ids) - 1), length - 1):
        end = start + length
        yield Tokens(text.ids[start:end], text.labels[start:end])


def within(text: Tokens, length: int) -> Tokens:
    """Beginning of a conversation, whose later answers mean nothing without it."""
    return Tokens(text.ids[:length], text.labels[:length])


def answers_beyond(text: Tokens, length: int) -> int:
    """Number of answers of a conversation that do not end within `length` tokens, and are not learnt, or not to their end."""
    learnt = [label != IGNORED for label in text.labels]
    ends = (place for place, pair in enumerate(pairwise([*learnt, False]), start=1) if pair == (True, False))
    return sum(end > length for end in ends)


def _fill(row: Tensor, texts: list[Tokens], length: int) -> None:
    at = 0
    for text in texts:
        end = at + len(text.ids)
        row[0, at:end] = torch.tensor(text.ids)
        row[1, at:end] = torch.tensor(text.labels)
        row[1, at] = IGNORED  # no text predicts the first token of the next
        row[2, at:end] = torch.arange(len(text.ids))
        at = end
    row[2, at:] = torch.arange(length - at)  # what is left is a text of its own, of which nothing is learnt


@dataclass(frozen=True, slots=True)
class TextTask(CountedRows):
    """Learning task of predicting the next token, where it is to be learnt. beyond: answers that do not end within a row's tokens."""

    train: Rows
    valid: Rows
    beyond: int = 0

    @property
    def units(self) -> dict[str, float]:
        """Number of tokens of texts in a row, on average."""
        return {"tokens": self.train.tokens / len(self.train)}

    def train_weight(self, rows: Tensor) -> int:
        """Number of learnt tokens in training rows."""
        return learnt_tokens(self.train.labels[rows])

    def valid_weight(self) -> int:
        """Number of learnt tokens in the validation rows."""
        return learnt_tokens(self.valid.labels)

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Training rows as tokens, labels and positions."""
        return self.train.take(rows)

    def valid_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Validation rows as tokens, labels and positions."""
        return self.valid.take(rows)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Log loss in nats: the mean over the learnt tokens of the batch, or their sum."""
        ids, labels, positions = batch
        logits = module(input_ids=ids, position_ids=positions, use_cache=False).logits
        return cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction=reduction,
        )


def learnt_tokens(labels: Tensor) -> int:
    """Number of tokens of rows (rows, length) that are learnt, of which the first of a row has nothing to be predicted from."""
    return int((labels[:, 1:] != IGNORED).sum())


def _messages(conversation: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(conversation)
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"messages={conversation[:80]!r} is not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(each, dict) and "role" in each for each in found):
        raise TrainingDataError(f'messages={conversation[:80]!r}: want a list of {{"role": …, "content": …}}')
    return found


def _template(tokenizer: Tokenizer, messages: Sequence[Any], **options: Any) -> list[int]:
    if not messages:
        return []
    return [*tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]]
