"""Rows of the prediction log for language models: what was asked and answered, and what it took."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from toque.functions.generative import CHAT
from toque.functions.prediction_log.records import is_sampled
from toque.functions.runtime.receipt import TokenPrice
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.requests import Ask
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.versions.loaded import InView

__all__ = ["IN_VIEW", "LoggedRow", "embedding_tensors", "live_outputs", "request_tensors", "response_tensors"]

IN_VIEW = InView.of(CHAT)
_ASKED = ("messages", "prompt", "input")


def request_tensors(ask: Ask) -> dict[str, Array]:
    """What was asked, as the caller sent it: the messages (or the prompt, or the texts), and all else."""
    asked = next(ask.body[name] for name in _ASKED if name in ask.body)
    rest = {name: value for name, value in ask.body.items() if name not in (*_ASKED, "model")}
    if ask.token_ids is not None:  # the prompt is the text of them
        rest["prompt_token_ids"] = ask.token_ids
    return {"messages": _texts([orjson.dumps(asked)]), "parameters": _texts([orjson.dumps(rest)])}


def response_tensors(answer: AnswerRecord) -> dict[str, Array]:
    """What was answered: the message, why it ended, the numbers of tokens, and the times of the first and between two."""
    tokens = [answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens]
    times_ms = [answer.first_token_s * 1e3, answer.between_tokens_s * 1e3]
    return {
        "message": _texts([orjson.dumps(answer.message)]),
        "finish_reason": _texts([answer.finish_reason.encode()]),
        "tokens": np.array([tokens], np.int64),
        "timings_ms": np.array([times_ms], np.float64),
    }


def embedding_tensors(data: Sequence[dict[str, Any]], prompt_tokens: int) -> dict[str, Array]:
    """What was answered to one request for embeddings: its vectors side by side, and the tokens of its texts."""
    vectors = [_vector(each["embedding"]) for each in data]
    return {
        "embedding": np.concatenate(vectors)[None, :] if vectors else np.zeros((1, 0), np.float32),
        "tokens": np.array([[prompt_tokens, 0, 0]], np.int64),
    }


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """What a row of the log has of a request and its answer; without texts where they are not kept."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @classmethod
    def of(
        cls,
        call_id: str,
        inputs: dict[str, Array],
        outputs: dict[str, Array],
        answer: AnswerRecord,
        *,
        price: TokenPrice | None,
        keep_texts: float,
    ) -> LoggedRow:
        """Make the row of an answer. price: of its tokens; None: it has no cost. keep_texts: share of the answers that keep theirs."""
        if price is not None:
            cost = price.money(
                prompt=answer.prompt_tokens, cached=answer.cached_tokens, answer=answer.completion_tokens
            )
            outputs = {**outputs, "cost": np.array([[cost]], np.float64)}
        if keep_texts < 1 and not is_sampled(call_id, keep_texts):
            return cls({}, {name: value for name, value in outputs.items() if name != "message"})
        return cls(inputs, outputs)


def live_outputs(answer: AnswerRecord, *, embeds: bool, declined: bool) -> dict[str, Array]:
    """What the live counts judge of an answer: no finite number where it is of no use, empty or declined. embeds: it has vectors."""
    usable = embeds or not (answer.is_empty or declined)
    return {"usable": np.array([1.0 if usable else np.nan])}


def _vector(found: Any) -> Array:
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found), np.float32)
    return np.array(found, np.float32).ravel()


def _texts(items: Sequence[bytes]) -> Array:
    out = np.empty((1, len(items)), object)
    out[0, :] = items
    return out
