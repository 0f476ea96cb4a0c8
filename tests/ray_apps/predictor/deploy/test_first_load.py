"""A new replica counts as ready when it can answer: a rolling update must not end the last one that does for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, load_fake_scorer
from toque.functions.prediction_log import close_writers
from toque.ray_apps.predictor import PredictorOptions
from toque.ray_apps.predictor.deploy import deployment
from toque.registry import Registry, open_store


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "tried_first", lambda *_: load_fake_scorer)
    monkeypatch.setattr(deployment, "CHAMPION_S", 0.5)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(open_store(f"file://{tmp_path}/store"), actor="ada")


@pytest.fixture
def options(registry: Registry) -> PredictorOptions:
    return PredictorOptions(store_url=registry.store.url, authentication=False, log=False, poll_s=0.05)


@pytest.fixture
def promoted(registry: Registry, tmp_path: Path) -> Callable[[str], int]:
    """Registers a version that fails as said, and promotes it."""

    def promote(fail: str) -> int:
        file = tmp_path / f"of-{fail}" / "model.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"value": 0.25, "fail": fail}))
        version = registry.create_version("late", path=file.parent, signature=SIGNATURE).version
        registry.promote("late", version)
        return version

    return promote


@pytest.mark.parametrize("known", [False, True])
async def test_a_model_without_a_version_is_ready_at_once(
    options: PredictorOptions, registry: Registry, *, known: bool
) -> None:
    if known:
        registry.create_model("late")
    endpoint = await deployment._open_endpoint("late", options, 0)
    assert endpoint.predictor.engine.loaded == []
    await endpoint.close()


async def test_a_replica_that_nobody_stands_in_for_says_why_it_cannot_answer(
    options: PredictorOptions,
    registry: Registry,
    promoted: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "others_answer", lambda: False)
    registry.create_model("late")
    promoted("load")
    endpoint = await deployment._open_endpoint("late", options, 0)
    fault = endpoint.predictor.engine.find_fault()
    assert fault is not None
    assert fault.startswith("late: version 1, the champion, cannot answer: ")
    await endpoint.close()


@pytest.mark.parametrize("why", ["champion", "store"])
async def test_a_replica_that_cannot_answer_does_not_get_ready_while_others_do(
    options: PredictorOptions,
    registry: Registry,
    promoted: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    def refuse(*_: object) -> object:
        raise OSError("no route to host")

    looks: list[int] = []

    def others_answer() -> bool:
        looks.append(1)
        return len(looks) < 3

    async def ask_another(method: str) -> bool:
        assert method == "has_champion"
        if len(looks) > 1:
            raise TimeoutError("it is busy")
        return True

    monkeypatch.setattr(deployment, "others_answer", others_answer)
    monkeypatch.setattr(deployment, "ask_another", ask_another)
    if why == "store":
        monkeypatch.setattr(type(registry.follow("late")), "refresh", refuse)
    else:
        registry.create_model("late")
        promoted("load")
    endpoint = await deployment._open_endpoint("late", options, 0)
    assert len(looks) == 3
    await endpoint.close()


async def test_a_replica_does_not_wait_for_others_that_cannot_answer_either(
    options: PredictorOptions,
    registry: Registry,
    promoted: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask_another(method: str) -> bool:
        return method != "has_champion"

    monkeypatch.setattr(deployment, "others_answer", lambda: True)
    monkeypatch.setattr(deployment, "ask_another", ask_another)
    registry.create_model("late")
    promoted("load")
    endpoint = await asyncio.wait_for(deployment._open_endpoint("late", options, 0), 60)
    assert endpoint.predictor.engine.find_fault() is not None
    await endpoint.close()


async def test_a_waiting_replica_gets_ready_with_the_champion_promoted_meanwhile(
    options: PredictorOptions,
    registry: Registry,
    promoted: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "CHAMPION_S", 60.0)
    registry.create_model("late")
    promoted("load")
    opening = asyncio.ensure_future(deployment._open_endpoint("late", options, 0))
    await asyncio.sleep(0.2)
    assert not opening.done()
    good = promoted("")
    endpoint = await asyncio.wait_for(opening, 60)
    assert endpoint.predictor.engine.routes.champion is not None
    assert endpoint.predictor.engine.loaded == [good]
    await endpoint.close()
    await asyncio.to_thread(close_writers)
