"""The real door, engine and Redis: a canary by the wall clock to the reflexes, and answers while Redis is away."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.ray_apps.admissions import patient_admission
from tests.redis_server import RedisServer, running_redis
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.live_counts import live_reader, window_at
from toque.functions.monitoring import alarms
from toque.functions.prediction_log import LogMode, close_writers, drain, predictions
from toque.functions.reflexes import Reflexes, reflexes_of
from toque.functions.rollout import RolloutPolicy, start_rollout
from toque.functions.rollout.jobs import rollouts
from toque.functions.runtime.context import Context, use_context
from toque.ray_apps.generative.__main__ import mounted
from toque.ray_apps.generative.build import build_door
from toque.ray_apps.generative.options import GenerativeOptions
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.registry import Access, Registry, open_store

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(900)]

MODEL, WITHIN_S = "live", 600
YES, LONG, DECLINING = "Yes", "Yes, " * 12, "I can't help."
POLICY = RolloutPolicy(
    promote_by="service", ramp_hold=timedelta(0), error_margin=0.9, canary_share=0.5, min_shadow_share=0.1,
    canary_min_requests=100_000,
)  # fmt: skip
"""A canary that stays until it is rolled back."""


def saying(text: str) -> dict[str, Any]:
    """The format of an answer that can only be this text, which the engine makes token by token."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"const": text}}}


def prompt(text: str) -> Prompt:
    """A prompt by which a version says this where the request leaves it the choice."""
    return Prompt.model_validate({"response_format": saying(text), "parameters": {"temperature": 0}})


@dataclass
class Live:
    """A door with a model of two versions, whose rollout is ticked between the requests."""

    used: Context
    client: httpx.AsyncClient
    reflexes: Reflexes
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def versions(self) -> tuple[int, ...]:
        return self.used.registry().traffic(MODEL).versions

    async def ask(self, asked: Sequence[dict[str, Any]]) -> list[str]:
        """Ask at once, each for a unit of its own; returns the ids of the predictions."""
        bodies = [
            {"model": MODEL, "user": f"unit-{next(self.numbers)}", "max_tokens": 160, "stream": True, **each}
            | {"messages": [{"role": "user", "content": "Hi"}]}
            for each in asked
        ]
        answers = await asyncio.gather(
            *(self.client.post("/v1/chat/completions", json=one) for one in bodies)
        )
        assert {each.status_code for each in answers} == {200}
        assert all(each.content.rstrip().endswith(b"data: [DONE]") for each in answers)
        return [each.headers["x-toque-prediction-id"] for each in answers]

    async def until(self, there: Callable[[], bool], asked: Sequence[dict[str, Any]]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not there():
            assert time.monotonic() < deadline, (self.versions, self.counted(), self.findings())
            await self.ask(asked)
            await asyncio.to_thread(self.reflexes.tick)

    def counted(self) -> list[str]:
        """Requests and unusable answers of each arm in the windows of the last quarter of an hour."""
        reader, now = live_reader(self.used.redis_url or "", self.used.workspace), time.time()
        windows = reader.windows(MODEL, range(window_at(now) - 15, window_at(now) + 1), now)
        return [
            f"{window} {arm}: {tally.requests}, {tally.missing.requests}"
            for window, counts in windows.items()
            for arm, tally in counts.arms.items()
        ]

    def findings(self) -> list[str]:
        with use_context(self.used):
            return [f"{found.rule}: {found.text}" for found in rollouts(MODEL).status().findings]

    def rule(self) -> str:
        """Text of the only alarm, which says the rule that rolled back."""
        with use_context(self.used):
            (found,) = alarms(MODEL).all()
        assert (found.monitor, found.version) == ("rollout", 2)
        return found.text


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def log_mode() -> LogMode:
    """Where a prediction is when it is answered."""
    return "file"


@pytest.fixture
async def live(
    tmp_path: Path, redis_server: RedisServer, small: Path, log_mode: LogMode
) -> AsyncIterator[Live]:
    """A champion that says yes unless a request says otherwise; version 2 is registered by the tests."""
    url = f"file://{tmp_path}/store"
    registry = Registry(open_store(url), actor="ada")
    settings = EngineSettings(context_length=256, slots=4)
    register_generative(registry, MODEL, weights=small, settings=settings, prompt=prompt(YES))
    registry.promote(MODEL, 1)
    options = GenerativeOptions(
        store_url=url,
        redis_url=redis_server.url,
        poll_s=0.1,
        engine_threads=1,
        wal_root=str(tmp_path / "wal"),
        log_mode=log_mode,
    )
    door = build_door(options)
    access = Access(open_store(url), actor="door")
    door.auth = TokenAuthenticator(patient_admission(access), workspace=None)
    used = Context(store=open_store(url), store_url=url, redis_url=redis_server.url, actor="ticker")
    reflexes = reflexes_of(used)
    assert reflexes is not None
    token = access.create_token("caller", "caller")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(mounted(door)), base_url="http://door", timeout=300,
        headers={"authorization": f"Bearer {token}"},
    ) as client:  # fmt: skip
        yield Live(used, client, reflexes)
    await door.close()
    await asyncio.to_thread(close_writers)


async def begun(live: Live, asked: Sequence[dict[str, Any]]) -> None:
    """Begin the rollout of version 2, and ask until it is in its canary."""
    with use_context(live.used):
        start_rollout(MODEL, 2, POLICY, "a try")
    await live.until(lambda: live.versions == (1, 2), asked)


async def test_while_redis_is_away_answers_go_on_and_their_rows_come_later(
    live: Live, redis_server: RedisServer
):
    begin = datetime.now(UTC)
    asked = await live.ask([{}])
    redis_server.kill()
    asked += await live.ask([{}] * 3)
    redis_server.start()
    found: set[str] = set()

    async def is_there() -> bool:
        await asyncio.to_thread(drain, live.used.store, redis_server.url)
        rows = predictions(live.used.store, MODEL, begin, datetime.now(UTC) + timedelta(hours=1))
        found.update(rows["prediction_id"].to_pylist())
        return found >= {*asked}

    deadline = time.monotonic() + WITHIN_S
    while not await is_there():
        assert time.monotonic() < deadline, found
    assert found == {*asked}


@pytest.fixture
def second_redis(tmp_path: Path, redis_server: RedisServer) -> Iterator[RedisServer]:
    """A replica of the Redis, so that a record can be on two nodes."""
    with running_redis(tmp_path / "replica") as server, redis.Redis.from_url(server.url) as client:
        client.config_set("masterauth", "secret")
        client.replicaof("127.0.0.1", redis_server.port)
        yield server


@pytest.mark.parametrize("log_mode", ["two_nodes"])
async def test_where_two_nodes_must_have_each_answer_none_is_whole_while_one_is_away(
    live: Live, redis_server: RedisServer, second_redis: RedisServer
):
    """A whole answer is refused, to be sent again; a stream, of which the caller has the most by then, ends with the refusal."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}

    async def whole() -> httpx.Response:
        return await live.client.post("/v1/chat/completions", json=asked)

    async def until_it_is(status: int) -> httpx.Response:
        deadline = time.monotonic() + WITHIN_S
        while (answer := await whole()).status_code != status:
            assert time.monotonic() < deadline, answer.text
        return answer

    await until_it_is(200)
    second_redis.kill()
    refused = await until_it_is(503)
    assert int(refused.headers["retry-after"]) >= 1
    assert "could not be logged on two nodes" in refused.json()["error"]["message"]
    stream = await live.client.post("/v1/chat/completions", json=asked | {"stream": True})
    assert stream.status_code == 200
    assert "could not be logged on two nodes" in stream.text
    assert "[DONE]" not in stream.text
    second_redis.start()
    with redis.Redis.from_url(second_redis.url) as client:
        client.config_set("masterauth", "secret")
        client.replicaof("127.0.0.1", redis_server.port)
    await until_it_is(200)


async def test_a_canary_that_declines_twice_as_often_is_rolled_back(live: Live):
    """Some requests can only be declined, by both; of the others the canary declines as many again."""
    register_generative(live.used.registry(), MODEL, keep=1, prompt=prompt(DECLINING))
    answered, declined = {"response_format": saying(YES)}, {"response_format": saying(DECLINING)}
    await begun(live, [answered] * 4)
    for _ in range(4):
        await live.ask([answered, answered, declined] * 3)  # were half declined, the champion would be out
        await asyncio.to_thread(live.reflexes.tick)
    assert live.versions == (1, 2)  # as often as the champion
    await live.until(lambda: live.versions == (1,), [answered, {}, declined] * 4)
    assert "by live_missing" in live.rule()


async def test_a_canary_whose_first_token_takes_twice_as_long_is_rolled_back(live: Live):
    """The canary has one slot, so that its requests wait for each other."""
    settings = EngineSettings(context_length=256, slots=1)
    register_generative(live.used.registry(), MODEL, keep=1, settings=settings)
    await begun(live, [{}])
    await live.until(lambda: live.versions == (1,), [{"response_format": saying(LONG)}] * 8)
    assert "by live_latency" in live.rule()
