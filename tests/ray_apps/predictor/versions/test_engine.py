from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ray_apps.predictor.conftest import ServedModel, load_fake_scorer, tensors
from toque.functions.prediction_log.records import decode_prediction
from toque.functions.runtime.changes import Watch
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.versions import loaded
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.versions.loaded import LoadedVersion, Scorer
from toque.registry import ModelVersion, Registry, Signature, Unavailable


async def served(served_model: ServedModel, unit: str) -> tuple[str, str]:
    answer = (await served_model.infer(tensors(parameters={"unit": unit}))).json()
    return answer["model_version"], answer["parameters"]["arm"]


async def test_a_promotion_and_a_rollback_take_effect_with_the_next_look(served_model: ServedModel):
    second = served_model.version(0.5)
    served_model.registry.promote("late", second)
    served_model.refresh()
    assert await served(served_model, "u") == ("2", "champion")
    served_model.registry.rollback("late", "champion")
    served_model.engine.follow_once()  # a look is enough: the version before is still loaded
    assert await served(served_model, "u") == ("1", "champion")


@pytest.mark.parametrize(
    ("fail", "words"),
    [("load", "not a model"), ("predict", "out of memory"), ("shape", "has shape"), ("type", "is not FP32"),
     ("values", "too large")],
)  # fmt: skip
async def test_a_version_that_cannot_answer_never_takes_traffic(
    served_model: ServedModel, fail: str, words: str
):
    broken = served_model.version(0.5, fail=fail)
    served_model.registry.promote("late", broken)
    served_model.refresh()
    assert await served(served_model, "u") == ("1", "champion")
    status = (await served_model.client.get("/status")).json()
    assert status["degraded"] == [broken]
    assert words in status["failures"][str(broken)]
    assert (await served_model.client.get("/ready")).status_code == 200


async def test_a_canary_that_cannot_answer_leaves_its_share_to_the_champion(served_model: ServedModel):
    broken = served_model.version(0.5, fail="load")
    served_model.registry.set_traffic("late", {"canary": (broken, 0.5)})
    served_model.refresh()
    answers = Counter([await served(served_model, f"u{i}") for i in range(40)])
    assert answers == {("1", "champion"): 40}


async def test_a_changed_byte_is_refused(served_model: ServedModel):
    second = served_model.version(0.5)
    blobs = [
        p
        for p in (served_model.folder / "store").rglob("*")
        if p.is_file() and b'"value": 0.5' in p.read_bytes()
    ]
    assert blobs
    for blob in blobs:
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes().replace(b"0.5", b"0.6"))
    served_model.registry.promote("late", second)
    served_model.refresh()
    assert await served(served_model, "u") == ("1", "champion")
    assert served_model.engine.failures[second]


async def test_a_failed_load_is_tried_again_later_and_not_at_once(
    served_model: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    loads: list[Path] = []
    healthy = [False]

    def loader(folder: Path, signature: Signature) -> Scorer:
        loads.append(folder)
        if not healthy[0]:
            raise OSError("the disk is full")
        return load_fake_scorer(folder, signature)

    monkeypatch.setattr(served_model.engine, "_loader", loader)
    monkeypatch.setattr(served_model.engine, "_clock", lambda: now[0])
    served_model.registry.promote("late", served_model.version(0.5))
    served_model.refresh()
    served_model.refresh()
    assert len(loads) == 1
    healthy[0], now[0] = True, 1.5
    served_model.refresh()
    assert len(loads) == 2
    assert await served(served_model, "u") == ("2", "champion")
    assert served_model.engine.failures == {}


async def test_the_split_is_the_registrys_and_sticky(served_model: ServedModel):
    canary, other = served_model.version(0.5), served_model.version(0.75)
    served_model.registry.set_traffic("late", {"canary": (canary, 0.2), "b": (other, 0.3)})
    served_model.refresh()
    traffic = served_model.registry.traffic("late")
    for i in range(60):
        arm = traffic.assign(f"u{i}")
        for _ in range(2):
            assert await served(served_model, f"u{i}") == (str(arm.version), arm.name)
    assert len({traffic.assign(f"u{i}").name for i in range(60)}) == 3


async def test_shadows_score_the_same_request_and_answer_none(served_model: ServedModel):
    shadow = served_model.version(0.5)
    served_model.registry.set_traffic("late", {}, shadows=[shadow])
    served_model.refresh()
    answer = (await served_model.infer(tensors(id="p1"))).json()
    assert answer["model_version"] == "1"
    await served_model.predictor.shadows.drained()
    first, second = (decode_prediction(payload) for payload in served_model.log.payloads)
    assert (first["id"], first["version"], first["shadow"]) == ("p1", 1, False)
    assert (second["id"], second["version"], second["shadow"], second["arm"]) == (
        "p1",
        shadow,
        True,
        "shadow",
    )
    assert second["numeric"] == first["numeric"]
    assert second["outputs"] != first["outputs"]


async def test_shadows_are_dropped_first_and_counted(make_served_model: Callable[..., ServedModel]):
    made = make_served_model(shadow_limit=2)
    made.registry.promote("late", made.version())
    made.registry.set_traffic("late", {}, shadows=[made.version(0.5)])
    made.refresh()
    held = threading.Event()
    (shadow,) = made.engine.routes.shadows
    shadow.example_ms = 5.0  # as one that is scored in a thread
    original = shadow.predict
    shadow.predict = lambda *given: (held.wait(60), original(*given))[1]  # type: ignore[method-assign]
    for _ in range(10):
        assert (await made.infer()).status_code == 200
    held.set()
    await made.predictor.shadows.drained()
    counts = made.predictor.shadows.describe()
    assert counts["dropped"] >= 7
    assert counts["scored"] + counts["dropped"] == 10
    await made.predictor.close()


async def test_a_shadow_that_fails_is_counted_and_hurts_nobody(served_model: ServedModel):
    shadow = served_model.version(0.5)
    served_model.registry.set_traffic("late", {}, shadows=[shadow])
    served_model.refresh()
    loaded: Any = served_model.engine.routes.shadows[0]
    loaded._scorer.fail = "predict"
    assert (await served_model.infer()).status_code == 200
    await served_model.predictor.shadows.drained()
    assert served_model.predictor.shadows.describe() == {"scored": 0, "failed": 1, "dropped": 0}


async def test_loaded_versions_answer_while_the_store_does_not(
    served_model: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    class UnavailableFollower:
        def refresh(self) -> Any:
            raise Unavailable("no route to host")

    monkeypatch.setattr(served_model.engine, "_follower", UnavailableFollower())
    served_model.refresh()
    assert await served(served_model, "u") == ("1", "champion")


async def test_versions_the_policy_dropped_are_evicted_beyond_the_retained(served_model: ServedModel):
    for value in (0.3, 0.4, 0.5, 0.6):
        served_model.registry.promote("late", served_model.version(value))
        served_model.refresh()
    assert (await served_model.client.get("/status")).json()["loaded"] == [3, 4, 5]


async def test_loading_does_not_block_answers(served_model: ServedModel, monkeypatch: pytest.MonkeyPatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder: Path, signature: Signature) -> Scorer:
        begun.set()
        assert go_on.wait(60)
        return load_fake_scorer(folder, signature)

    monkeypatch.setattr(served_model.engine, "_loader", slow)
    served_model.registry.promote("late", served_model.version(0.5))
    loading = asyncio.get_running_loop().run_in_executor(None, served_model.refresh)
    assert await asyncio.get_running_loop().run_in_executor(None, begun.wait, 20)
    assert await served(served_model, "u") == ("1", "champion")
    go_on.set()
    await loading
    assert await served(served_model, "u") == ("2", "champion")


async def test_the_threads_follow_a_promotion_within_a_second(tmp_path: Path, served_model: ServedModel):
    source = Registry(served_model.registry.store, actor="replica")
    engine = Engine("late", source, load_fake_scorer, scratch=tmp_path / "x", watch=Watch(every_s=0.05))
    engine.start()
    assert engine.routes.champion is not None
    second = served_model.version(0.5)
    begin = time.monotonic()
    served_model.registry.promote("late", second)
    while engine.routes.champion.version != second:
        assert time.monotonic() - begin < 60
        await asyncio.sleep(0.01)
    engine.stop()


async def test_slow_versions_answer_off_the_event_loop(served_model: ServedModel):
    champion = served_model.engine.routes.champion
    assert champion is not None
    assert champion.inline
    champion.example_ms = 50.0
    threads: list[str] = []
    original = champion.predict
    champion.predict = lambda *x: (threads.append(threading.current_thread().name), original(*x))[1]  # type: ignore[method-assign]
    assert (await served_model.infer()).status_code == 200
    assert threads[0].startswith("predict")


def test_a_version_that_waits_for_a_cpu_while_it_is_warmed_up_answers_where_its_twin_does(
    served_model: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    champion = served_model.engine.routes.champion
    assert champion is not None
    clock_s = [0.0]
    took_s = iter([0.05, 0.0001, 0.004, 0.004])  # cold; then two of three tries wait for a CPU

    class Starved:
        def predict(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            clock_s[0] += next(took_s, 0.004)
            return champion.predict(inputs)

    monkeypatch.setattr(loaded, "time", SimpleNamespace(perf_counter=lambda: clock_s[0]))
    twin = LoadedVersion(champion.record, Starved())
    twin.warm_up()
    assert twin.example_ms == pytest.approx(0.1)
    assert twin.inline


async def test_between_two_answers_of_a_millisecond_the_event_loop_does_what_else_there_is(
    served_model: ServedModel,
):
    champion = served_model.engine.routes.champion
    assert champion is not None
    champion.example_ms = 1.0
    done: list[str] = []
    original = champion.predict
    champion.predict = lambda *x: (done.append("answer"), original(*x))[1]  # type: ignore[method-assign]

    async def others() -> None:
        while done.count("answer") < 5:
            done.append("else")
            await asyncio.sleep(0)

    inputs = champion.example()
    assert inputs is not None
    answers = [champion.answer(inputs, 1, (), served_model.predictor._pool) for _ in range(5)]
    await asyncio.wait_for(asyncio.gather(*answers, others()), 30)
    assert "answer,answer" not in ",".join(done)
    assert done.count("answer") == 5


async def test_a_canary_does_not_overtake_those_who_wait_for_the_champion(served_model: ServedModel):
    served_model.registry.set_traffic("late", {"canary": (served_model.version(0.5), 0.2)})
    served_model.refresh()
    champion, canary = (served_model.engine.find(number) for number in (1, 2))
    assert champion is not None
    assert canary is not None
    inputs, answered = champion.example(), []
    assert inputs is not None
    pool = served_model.predictor._pool

    async def ask(version: LoadedVersion) -> None:
        await version.answer(inputs, 1, (), pool)
        answered.append(version.version)

    for version in (champion, canary):
        version.example_ms = 1.0
    await asyncio.wait_for(asyncio.gather(*map(ask, [champion] * 5 + [canary])), 30)
    assert answered == [1, 1, 1, 1, 1, 2]


def test_version_records_are_the_registrys(served_model: ServedModel):
    champion = served_model.engine.routes.champion
    assert champion is not None
    assert isinstance(champion.record, ModelVersion)
