"""Likelihoods of texts, and of choices after a prompt, by a language model that is a Hugging Face folder.

A choice is scored by the log probability of its tokens after the prompt's, and a text by that of each token after those before it
in a window, as lm-evaluation-harness does. `transformers` (the extra `llm`) is imported when a model is read.

Source: Gao et al., A framework for few-shot language model evaluation, 2023 (`loglikelihood`, `loglikelihood_rolling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.evaluation_set import EvaluationRow
from toque.functions.model_formats.text_classifier import refuse_other_folders

__all__ = ["Likelihood", "Likelihoods", "read_model"]

_LONGEST: Final = 4_096
"""Tokens of a window, where the model reads more: the logits of one are as many times its vocabulary."""
_TOKENS_AT_ONCE: Final = 4_096


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log likelihood of a text in nats, with its tokens and bytes. Those of several texts can be added."""

    nats: float
    tokens: int
    size_bytes: int

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(
            self.nats + other.nats, self.tokens + other.tokens, self.size_bytes + other.size_bytes
        )

    @property
    def a_token(self) -> float:
        """Geometric mean of the probabilities of its tokens, from 0 to 1: one over the perplexity."""
        return math.exp(self.nats / self.tokens)

    @property
    def metrics(self) -> dict[str, float]:
        """Perplexity of a token, which depends on the tokenizer, and bits a byte, which do not."""
        return {
            "perplexity": 1.0 / self.a_token,
            "bits_per_byte": -self.nats / math.log(2.0) / self.size_bytes,
        }


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """A language model with its tokenizer, asked for likelihoods. longest: tokens that it reads at once."""

    net: Any
    tokenizer: Any
    longest: int

    def of_text(self, text: str) -> Likelihood:
        """Score a whole text, its first token after the token that begins one. Raises: EvaluationError if it is empty."""
        ids = self._tokens(text)
        if not ids:
            raise EvaluationError("a text without a token has no likelihood; leave such rows out")
        start = self.tokenizer.bos_token_id
        ids = [self.tokenizer.eos_token_id if start is None else start, *ids]
        windows = []  # each goes on after the last token of the one before
        for first in range(1, len(ids), self.longest):
            window = ids[first - 1 : first + self.longest]
            windows.append((window, len(window) - 1))
        return Likelihood(sum(self._nats(windows)), len(ids) - 1, len(text.encode()))

    def of_choices(self, row: EvaluationRow) -> list[Likelihood]:
        """Score each choice of a row after its prompt. Raises: EvaluationError if one has no token, or does not fit."""
        windows = []
        for choice in row.choices:
            before, whole = self._pair(row, choice)
            scored = len(whole) - len(before)
            if not before or scored < 1 or scored > self.longest:
                raise EvaluationError(
                    f"row {row.number}: choice {choice!r:.80} has {scored} tokens after {len(before)} of the prompt: one is "
                    f"needed of each, and at most {self.longest} of a choice"
                )
            windows.append((whole[-(self.longest + 1) :], scored))
        found = zip(row.choices, windows, self._nats(windows), strict=True)
        return [Likelihood(nats, scored, len(choice.encode())) for choice, (_, scored), nats in found]

    def _pair(self, row: EvaluationRow, choice: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt, and of prompt and choice together."""
        if row.prompt is None:
            options = {"add_generation_prompt": True, "tokenize": False}
            prompt: str = self.tokenizer.apply_chat_template(row.messages, **options)
            special = False  # the template has written them
        else:
            prompt, special = row.prompt, True
        spaces = len(prompt) - len(prompt.rstrip())
        if spaces:  # tokens begin with their space
            prompt, choice = prompt[:-spaces], prompt[-spaces:] + choice
        return self._tokens(prompt, special=special), self._tokens(prompt + choice, special=special)

    def _tokens(self, text: str, *, special: bool = False) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=special)["input_ids"]]

    def _nats(self, windows: Sequence[tuple[list[int], int]]) -> list[float]:
        """Log likelihoods of the last so many tokens of each window, given those before; about equally long ones together."""
        found = [0.0] * len(windows)
        order = sorted(range(len(windows)), key=lambda place: len(windows[place][0]))
        while order:
            most = max(1, _TOKENS_AT_ONCE // len(windows[order[0]][0]))
            taken, order = order[:most], order[most:]
            for place, nats in zip(taken, self._scored([windows[each] for each in taken]), strict=True):
                found[place] = nats
        return found

    def _scored(self, windows: Sequence[tuple[list[int], int]]) -> list[float]:
        import torch  # late: of processes that only name functions

        longest = max(len(ids) for ids, _ in windows)
        ids = torch.zeros(len(windows), longest, dtype=torch.int64)
        for row, (own, _) in enumerate(windows):
            ids[row, : len(own)] = torch.tensor(own)  # filled up at the end, which none of them sees
        positions = torch.arange(longest - 1).expand(len(windows), -1)
        mask = torch.ones(len(windows), longest - 1, dtype=torch.int64)
        with torch.inference_mode():
            logits = self.net(
                input_ids=ids[:, :-1], attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
            each = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return [
            float(each[row, len(own) - 1 - scored : len(own) - 1].double().sum())
            for row, (own, scored) in enumerate(windows)
        ]


def read_model(folder: Path) -> Likelihoods:
    """Read a language model from a Hugging Face folder. Raises: EvaluationError if it is none; ArtifactRefused if it names other folders."""
    import torch  # late, as `transformers`
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise EvaluationError(
            "likelihoods are computed of versions that are Hugging Face folders, as fine_tune registers them; this one has no "
            "config.json: judge it by evaluate_answers"
        )
    refuse_other_folders(folder)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    made: Any = AutoModelForCausalLM
    net = made.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    longest = min(_LONGEST, getattr(config, "max_position_embeddings", _LONGEST) - 1)
    return Likelihoods(net.eval(), tokenizer, longest)
