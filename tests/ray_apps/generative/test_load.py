"""What a replica of language models reports to be scaled by: on a clock by hand, and of a door with a real engine."""

from typing import Any

import openai
import pytest

from tests.ray_apps.generative.conftest import MODEL, ServedDoor
from tests.waiting import until
from toque.ray_apps.generative.series import LoadMeter
from toque.ray_apps.predictor.deploy.replica import REPORTS
from toque.ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS, TOKENS

ASKED: Any = [{"role": "user", "content": "What is 2+2?"}]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_tokens_and_requests_are_averaged_over_time_and_first_tokens_counted():
    clock = Clock()
    meter = LoadMeter(clock)
    first, refused = meter.begin(), meter.begin()
    refused.close()  # before its prompt was counted
    first.hold(300)
    clock.now_s = 1
    second = meter.begin()
    second.hold(100)
    first.first_token(0.5)
    clock.now_s = 4
    first.close()
    found = meter.autoscaling_metrics()
    assert (found[TOKENS], found[IN_FLIGHT]) == ((300 * 1 + 400 * 3) / 4, (1 * 1 + 2 * 3) / 4)
    assert (found[ANSWERS], found[LATENCY_MS]) == (1, pytest.approx(500, rel=0.051))
    clock.now_s = 10
    second.close()  # its caller waited nine seconds for the first token, and left
    for _ in range(5):
        found = meter.autoscaling_metrics()
    assert (found[ANSWERS], found[LATENCY_MS]) == (1, pytest.approx(9_000, rel=0.051))
    clock.now_s = 20
    for _ in range(5):
        found = meter.autoscaling_metrics()
    assert found == {ANSWERS: 0, LATENCY_MS: 0, IN_FLIGHT: 0, TOKENS: 0}


def test_an_answer_is_load_until_it_ends_and_a_refusal_is_none(client: openai.OpenAI, served: ServedDoor):
    meter = served.door.meter

    def reported() -> dict[str, float]:
        """What is reported of the time since this was last asked."""
        found, *_ = [served.door.autoscaling_metrics() for _ in range(REPORTS)]
        return found

    def is_idle() -> bool:
        return (meter.requests.value, meter.tokens.value) == (0, 0)

    until(is_idle)
    reported()
    client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=4)
    until(is_idle)
    whole = reported()
    assert (whole[ANSWERS], whole[TOKENS] > 4) == (1, True)
    pieces = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=100, stream=True, logit_bias={"2": -100}
    )
    next(iter(pieces))
    assert (meter.requests.value, meter.tokens.value > 100) == (1, True)
    pieces.close()
    until(is_idle)
    stream = reported()
    assert stream[ANSWERS] == 1
    assert stream[LATENCY_MS] > 0
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=5_000)
    assert is_idle()
    assert reported()[ANSWERS] == 0
