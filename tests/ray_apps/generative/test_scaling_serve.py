"""The door behind Serve and HAProxy gets a second replica for the tokens in flight, and none once nobody asks."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.ray_apps.generative.served import REPLICA, pids, served_door
from tests.waiting import until
from toque.functions.generative import EngineSettings, register_generative
from toque.registry import ObjectStore, Registry, open_store

pytestmark = [pytest.mark.ray, pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(550)]

CALLERS = 3
"""Fewer than the eight that a replica may have in flight: by them alone there is never a second one."""
LONG: dict[str, Any] = {"model": "small", "max_tokens": 800, "logit_bias": {"2": -100}, "stream": True}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def client(small: Path, store: ObjectStore) -> Iterator[openai.OpenAI]:
    registry = Registry(store, actor="ada")
    settings = EngineSettings(context_length=1_024, slots=8)
    register_generative(registry, "small", weights=small, settings=settings)
    registry.promote("small", 1)
    with served_door(store, min_replicas=0, max_replicas=2, target_tokens=1_000, idle_s=5) as client:
        yield client


def test_tokens_in_flight_bring_a_second_replica_and_idleness_ends_them_all(
    client: openai.OpenAI, store: ObjectStore
):
    def replicas() -> int:
        return len(pids(store, REPLICA))

    enough = threading.Event()

    def ask(number: int) -> None:
        asked: Any = [{"role": "user", "content": f"Count to {number}."}]
        while not enough.is_set():
            list(client.chat.completions.create(messages=asked, **LONG))

    with ThreadPoolExecutor(CALLERS) as pool:
        asking = [pool.submit(ask, number) for number in range(CALLERS)]
        try:
            until(lambda: replicas() == 2 or any(each.done() for each in asking), within_s=240)
        finally:
            enough.set()
        for each in asking:
            each.result()
    until(lambda: replicas() == 0, within_s=240)
    assert client.models.list().data[0].id == "small"  # the next request brings one back
    assert replicas() == 1
