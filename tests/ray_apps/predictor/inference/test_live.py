"""What a predictor tells its tally: every end of a request, by split, version and arm, with a logged row or without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.functions.live_counts import ArmTally, SplitArm, Tally
from toque.functions.prediction_log import LOAD_TEST
from toque.functions.prediction_log.writing.columns import prediction_columns


@pytest.fixture
def tally() -> Tally:
    return Tally(lambda: 100.0)


@pytest.fixture
def served(make_served_model: Callable[..., ServedModel], tally: Tally) -> ServedModel:
    made = make_served_model(tally=tally)
    made.registry.promote("late", made.version())
    made.refresh()
    return made


def counted(tally: Tally) -> dict[SplitArm, ArmTally]:
    return next(iter(tally.take().values()), {})


def fail(served: ServedModel, version: int) -> None:
    loaded: Any = served.engine.find(version)
    loaded._scorer.fail = "predict"


async def test_answers_and_errors_count_by_the_split_that_sent_them(
    served: ServedModel, tally: Tally
) -> None:
    bad = served.version()
    traffic = served.registry.set_traffic("late", {"canary": (bad, 0.5)})
    served.refresh()
    fail(served, bad)
    statuses = [
        (await served.infer(tensors(parameters={"unit": f"u{number}"}))).status_code for number in range(40)
    ]
    found = counted(tally)
    champion = found[SplitArm(traffic.entry, 1, "champion", 0.5)]
    canary = found[SplitArm(traffic.entry, bad, "canary", 0.5)]
    assert (champion.requests, canary.requests) == (statuses.count(200), statuses.count(500))
    assert (champion.errors.requests, canary.errors.requests) == (0, canary.requests)
    assert int(champion.latency.sum()) == champion.requests


async def test_a_request_by_number_does_not_count(served: ServedModel, tally: Tally) -> None:
    assert (await served.infer(path="/versions/1/infer")).status_code == 200
    assert counted(tally) == {}


async def test_an_answer_that_is_no_number_counts_as_missing(served: ServedModel, tally: Tally) -> None:
    nan = served.version(float("nan"))
    served.registry.promote("late", nan)
    served.refresh()
    assert (await served.infer()).status_code == 200
    (found,) = counted(tally).values()
    assert (found.requests, found.errors.requests, found.missing.requests) == (1, 0, 1)


async def test_what_a_shadow_fails_to_score_counts_as_its_error(served: ServedModel, tally: Tally) -> None:
    bad = served.version()
    traffic = served.registry.set_traffic("late", {}, shadows=[bad])
    served.refresh()
    fail(served, bad)
    for _ in range(3):
        assert (await served.infer()).status_code == 200
    await served.predictor.shadows.drained()
    found = counted(tally)[SplitArm(traffic.entry, bad, "shadow", 0.0)]
    assert (found.requests, found.errors.requests) == (3, 3)


async def test_a_request_without_a_version_that_is_loaded_is_the_champion_s_error(
    make_served_model: Callable[..., ServedModel], tally: Tally
) -> None:
    made = make_served_model(tally=tally)
    made.registry.promote("late", made.version(fail="load"))
    made.refresh()
    assert (await made.infer()).status_code == 503
    (found,) = counted(tally).values()
    assert found.errors.requests == 1


async def test_a_deadline_that_passes_counts_as_missing(served: ServedModel, tally: Tally) -> None:
    loaded = served.engine.find(1)
    assert loaded is not None

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    loaded.answer = never  # type: ignore[method-assign, assignment]
    response = await served.client.post("/infer", json=tensors(), headers={"X-Request-Timeout-Ms": "30"})
    assert response.status_code == 504
    (found,) = counted(tally).values()
    assert (found.requests, found.missing.requests, int(found.latency.sum())) == (1, 1, 1)


@pytest.mark.parametrize("broken", [False, True])
async def test_a_load_test_is_answered_and_logged_and_is_no_evidence(
    served: ServedModel, tally: Tally, *, broken: bool
) -> None:
    shadow, canary = served.version(), served.version()
    served.registry.set_traffic("late", {"canary": (canary, 0.5)}, shadows=[shadow])
    served.refresh()
    if broken:
        fail(served, canary)
    before = len(served.log.payloads)
    answers = [
        await served.infer(tensors(parameters={"unit": f"u{number}", "load_test": True}))
        for number in range(40)
    ]
    assert {answer.status_code for answer in answers} == ({200, 500} if broken else {200})
    served.predictor.recorder.flush()
    await served.predictor.shadows.drained()
    rows = prediction_columns(served.log.payloads[before:])["late"].to_pylist()
    assert len(rows) == 40
    assert {(row["arm"], row["shadow"]) for row in rows} == {(LOAD_TEST, False)}
    assert {row["version"] for row in rows} == {1, canary}
    assert counted(tally) == {}
    for number in range(40):
        await served.infer(tensors(parameters={"unit": f"u{number}", "load_test": False}))
    assert sum(one.requests for one in counted(tally).values()) >= 40


@pytest.mark.parametrize("mark", ["true", 1, 0, None, [True], {}])
async def test_a_mark_that_is_no_boolean_is_refused(served: ServedModel, mark: Any) -> None:
    answer = await served.infer(tensors(parameters={"load_test": mark}))
    assert (answer.status_code, "parameters.load_test" in answer.text) == (400, True)
