"""What the live counts have of an answer: when its first token came, and whether it was of any use."""

import math
from typing import Any

import numpy as np
import orjson
import pytest

from toque.functions.live_counts import End, Tally, is_usable
from toque.ray_apps.generative.answering.recording import live_outputs, response_tensors
from toque.ray_apps.generative.openai.answers import AnswerRecord, EventStream, record_of
from toque.ray_apps.predictor.inference.live import LiveCounter


class Asked:
    """A request that took 900 ms in all."""

    id, unit, arm, traffic, number = "one", "ada", "champion", None, 1

    def elapsed_ms(self) -> float:
        return 900.0


class Counts(Tally):
    """A tally that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[End, float]] = []

    def count(self, arm: Any, unit: str, end: End, latency_ms: float) -> None:
        super().count(arm, unit, end, latency_ms)
        self.told.append((end, latency_ms))


def streamed(*pieces: tuple[float, str], tokens: int) -> AnswerRecord:
    """The record of a stream whose pieces came at some seconds."""
    stream = EventStream("id", "m@1", wants_usage=False, begin_s=0.0)
    for at, text in pieces:
        event = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
        stream.feed(b"data: " + orjson.dumps(event) + b"\n\n", at)
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
    stream.feed(b"data: " + orjson.dumps(usage) + b"\n\n" + b"data: [DONE]\n\n", 1.0)
    return stream.finish()


def whole(**message: Any) -> AnswerRecord:
    document = {
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 4},
        "timings": {"predicted_ms": 400.0},
    }
    return record_of(document, 0.9)


def test_versions_are_compared_by_their_first_token_and_failures_by_the_whole():
    tally = Counts()
    counter = LiveCounter(tally)
    usable = live_outputs(whole(content="Rome"), embeds=False, declined=False)
    counter.answered(Asked(), usable, latency_ms=120.0)
    counter.answered(Asked(), usable)
    counter.failed(Asked(), 499, latency_ms=120.0)
    counter.failed(Asked(), 504)
    assert tally.told == [
        (End.ANSWERED, 120.0),
        (End.ANSWERED, 900.0),
        (End.MISSING, 120.0),
        (End.MISSING, 900.0),
    ]


@pytest.mark.parametrize(
    ("answer", "usable"),
    [
        (whole(content="Rome"), True),
        (whole(content=None, tool_calls=[{"type": "function"}]), True),
        (whole(content=""), False),
        (whole(content="I'm sorry, but I can't help with that."), False),
        (streamed((0.1, "I can't"), (0.2, " help with that."), tokens=6), False),
        (streamed((0.1, "Rome"), tokens=1), True),
        (streamed(tokens=1), False),  # it ended at once
    ],
)
def test_an_answer_that_is_empty_or_declines_is_of_no_use(answer: AnswerRecord, *, usable: bool):
    assert is_usable(live_outputs(answer, embeds=False, declined=answer.declines())["usable"]) is usable
    assert is_usable(live_outputs(AnswerRecord(), embeds=True, declined=False)["usable"])


def test_an_answer_of_one_token_is_an_answer_in_the_log():
    one, several = streamed((0.25, "Yes"), tokens=1), streamed((0.1, "a"), (0.3, "b"), (0.5, "c"), tokens=3)
    assert response_tensors(one)["timings_ms"].tolist() == [[250.0, 0.0]]
    assert response_tensors(several)["timings_ms"].tolist() == [[100.0, pytest.approx(200.0)]]
    assert np.isnan(response_tensors(streamed(tokens=1))["timings_ms"]).all()
    assert math.isfinite(whole(content="Rome").first_token_s)
