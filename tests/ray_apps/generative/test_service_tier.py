"""Service tiers of requests: who may ask for which, and in which order a busy engine answers them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY

from tests.ray_apps.generative.conftest import ServedDoor
from tests.ray_apps.generative.test_faults import slow_client
from tests.waiting import until
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.generative.engines import EngineProcess
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    RESPONSE,
    granted_tier,
    parse_request,
)
from toque.ray_apps.generative.series import EngineSeries
from toque.registry import SERVICE_TIERS, Limits, ServiceTier

MODEL = "busy"
SETTINGS = EngineSettings(context_length=4_096, slots=1, max_tokens=4_096)
ASKED: list[Any] = [{"role": "user", "content": "Count."}]
ENDLESS: dict[str, Any] = {"messages": ASKED, "logit_bias": {str(token): -100 for token in range(17)}}
"""A request whose answer ends with the context."""


def bounds(token: ServiceTier | None, workspace: ServiceTier | None) -> list[tuple[str, Limits]]:
    return [
        ("token shop", Limits(service_tier=token)),
        ("workspace sales", Limits(service_tier=workspace)),
    ]


@pytest.mark.parametrize(
    ("token", "workspace", "asked", "granted"),
    [
        (None, None, None, "default"),
        (None, None, "auto", "default"),
        (None, None, "flex", "flex"),
        ("priority", None, None, "default"),
        ("priority", None, "priority", "priority"),
        (None, "priority", "priority", "priority"),
        ("priority", "priority", "flex", "flex"),
        ("flex", "priority", None, "flex"),
        ("priority", "flex", "auto", "flex"),
    ],
)
def test_a_request_waits_by_the_tier_that_it_asks_for(token, workspace, asked, granted):
    body = {} if asked is None else {"service_tier": asked}
    assert granted_tier(body, bounds(token, workspace)) == granted


@pytest.mark.parametrize(
    ("token", "workspace", "asked", "who"),
    [
        (None, None, "priority", "token shop may ask for, which is 'default'"),
        ("default", "priority", "priority", "token shop may ask for, which is 'default'"),
        ("priority", "default", "priority", "workspace sales may ask for, which is 'default'"),
        ("flex", None, "default", "token shop may ask for, which is 'flex'"),
    ],
)
def test_more_than_token_and_workspace_allow_is_refused(token, workspace, asked, who):
    with pytest.raises(ApiRefusal, match=who) as refused:
        granted_tier({"service_tier": asked}, bounds(token, workspace))
    assert (refused.value.status, refused.value.param) == (403, "service_tier")


def test_without_authentication_every_tier_may_be_asked_for():
    assert granted_tier({"service_tier": "priority"}, ()) == "priority"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (CHAT, b'{"model":"m","messages":[],"service_tier":"scale"}'),
        (COMPLETION, b'{"model":"m","prompt":"a","service_tier":3}'),
        (RESPONSE, b'{"model":"m","input":"a","service_tier":["flex"]}'),
        (EMBEDDING, b'{"model":"m","input":"a","service_tier":"flex"}'),  # OpenAI's has no such field
    ],
)
def test_a_tier_that_there_is_not_is_refused_by_name(kind: str, content: bytes):
    with pytest.raises(ApiRefusal, match="service_tier: ") as refused:
        parse_request(kind, content)
    assert refused.value.param == "service_tier"


def test_engines_do_not_see_the_tier():
    for kind, asked in ((CHAT, b'"messages":[]'), (RESPONSE, b'"input":"a"'), (COMPLETION, b'"prompt":"a"')):
        ask = parse_request(kind, b'{"model":"m","service_tier":"flex",%s}' % asked)
        assert ask.body["service_tier"] == "flex"
        assert "service_tier" not in ask.for_engine()


@pytest.fixture(scope="module")
def busy(served: ServedDoor, small: Path) -> ServedDoor:
    """A model with one slot, which is ready."""
    register_generative(served.registry, MODEL, weights=small, settings=SETTINGS)
    served.registry.promote(MODEL, 1)
    served.client().chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1)
    return served


def engine(door: ServedDoor) -> EngineProcess:
    return next(
        each
        for each in door.engines.processes
        if each.spec.settings.context_length == SETTINGS.context_length
    )


def test_a_busy_engine_answers_by_tier_and_a_full_queue_refuses_the_lowest(
    busy: ServedDoor, monkeypatch: pytest.MonkeyPatch
):
    client, slots = busy.client(busy.bounded["urgent"]), engine(busy).slots
    monkeypatch.setattr(slots, "_most", 3)
    stream = client.chat.completions.create(model=MODEL, stream=True, **ENDLESS)
    next(iter(stream))

    def ask(tier: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1, service_tier=tier)

    with ThreadPoolExecutor(4) as pool:
        waiting = []
        for tier in SERVICE_TIERS:  # the lowest came first
            waiting.append(pool.submit(ask, tier))
            until(lambda: slots.waiting(tier) == 1, within_s=20)  # noqa: B023  # within the loop's turn
        EngineSeries(busy.engines).flush()
        for tier in SERVICE_TIERS:
            assert REGISTRY.get_sample_value("toque_generative_waiting_requests", {"tier": tier}) == 1
        flex, normal, first = waiting
        last = pool.submit(ask, "auto")
        with pytest.raises(openai.RateLimitError, match="as many as may") as refused:
            flex.result(20)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            ask("flex")
        stream.close()
        answers = [each.result(20) for each in (first, normal, last)]
    assert [answer.service_tier for answer in answers] == ["priority", "default", "default"]
    logged = [row[0] for row in busy.log.rows()]
    places = [logged.index(answer.id) for answer in answers]
    assert places == sorted(places)
    assert not busy.door.in_flight


def test_a_caller_who_leaves_the_queue_pays_nothing_and_holds_nobody_up(busy: ServedDoor):
    client, slots = busy.client(), engine(busy).slots
    impatient = busy.client(busy.bounded["impatient"], timeout=0.5)
    with client.chat.completions.create(model=MODEL, stream=True, **ENDLESS) as stream:
        next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=9)
        until(lambda: not slots.waiting("default"), within_s=20)
    assert client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1).choices
    until(lambda: not busy.door.in_flight, within_s=20)
    assert busy.budgets._buckets["token impatient"].left == 100_000


def test_who_reads_slowly_has_no_slot_once_the_engine_has_made_the_answer(busy: ServedDoor):
    many = {"logprobs": True, "top_logprobs": 20, "max_tokens": 2_500}  # more bytes than sockets hold
    with slow_client(busy, MODEL, **many) as connection:
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 1}
        assert busy.client(timeout=60).chat.completions.create(**asked).choices
        assert busy.door.in_flight == 1  # the slow one, which nobody reads
    until(lambda: not busy.door.in_flight, within_s=20)


def test_priority_without_a_grant_is_refused_through_the_door(busy: ServedDoor):
    with pytest.raises(
        openai.PermissionDeniedError, match="service_tier: 'priority' is more than token caller"
    ):
        busy.client().chat.completions.create(model=MODEL, messages=ASKED, service_tier="priority")
