"""A version whose files crash or exhaust what loads them takes no traffic, and the champion goes on answering."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, ServedModel, tensors
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.ray_apps.predictor.versions.loaded import tried_first
from toque.ray_apps.predictor.versions.scoring import load_scorer

PROJECT = "tests.functions.model_formats.sandbox.hostile"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    limits = SandboxLimits(memory_bytes=1 << 30, cpu_s=2)
    verdicts = tmp_path_factory.mktemp("verdicts")
    made = Sandbox(limits, verdicts=verdicts, environment={"TOQUE_PROJECT": PROJECT})
    yield made
    made.close()


@pytest.fixture
def guarded(served_model: ServedModel, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    monkeypatch.setenv("TOQUE_PROJECT", PROJECT)
    monkeypatch.setattr(served_model.engine, "_loader", tried_first(sandbox.check, load_scorer))
    return served_model


def register(served_model: ServedModel, scorer: str) -> int:
    path = served_model.folder / f"files-{scorer}"
    path.mkdir()
    (path / "python_model.json").write_text(json.dumps({"scorer": scorer}))
    return served_model.registry.create_version("late", path=path, signature=SIGNATURE).version


@pytest.mark.parametrize(
    ("act", "words"), [("crash", "SIGSEGV"), ("allocate", "memory_bytes"), ("loop", "cpu_s=2")]
)
async def test_a_promoted_version_that_kills_its_loader_leaves_the_champion_answering(
    guarded: ServedModel, act: str, words: str
):
    broken = register(guarded, act)
    guarded.registry.promote("late", broken)
    guarded.engine.follow_once()
    loading = asyncio.get_running_loop().run_in_executor(None, guarded.engine.load_wanted)
    answers = 0
    while not loading.done():
        answer = await guarded.infer(tensors())
        assert answer.json()["model_version"] == "1"
        answers += 1
        await asyncio.sleep(0.01)
    assert answers
    reason = (await guarded.client.get("/status")).json()["failures"][str(broken)]
    assert reason.startswith(f"late@{broken} cannot be served: ")
    assert words in reason
    assert "options.sandbox" in reason
    by_number = await guarded.infer(path=f"/versions/{broken}/infer")
    assert by_number.status_code == 503
    assert words in by_number.json()["error"]


async def test_a_version_that_passes_takes_over(guarded: ServedModel):
    sound = register(guarded, "nothing")
    guarded.registry.promote("late", sound)
    await asyncio.get_running_loop().run_in_executor(None, guarded.refresh)
    answer = (await guarded.infer(tensors())).json()
    assert (answer["model_version"], answer["outputs"][0]["data"]) == (str(sound), [0.75])


def test_nothing_is_loaded_here_before_it_passed(tmp_path: Path) -> None:
    order: list[str] = []
    refuse = partial(_refuse, order)
    load = tried_first(refuse, lambda *_: order.append("loaded"))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="refused"):
        load(tmp_path, SIGNATURE)
    assert order == ["tried"]


def _refuse(order: list[str], *_: object) -> None:
    order.append("tried")
    raise ValueError("refused")
