"""Where shadows are scored: fast ones on the event loop between answers, slow ones and large requests in a thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.inference import shadows as shadows_module
from toque.ray_apps.predictor.inference.shadows import MAX_ROWS, TURN_S


@pytest.fixture
def shadow(served_model: ServedModel) -> Any:
    """A shadow that notes the thread it answers in."""
    number = served_model.version(0.5)
    served_model.registry.set_traffic("late", {}, shadows=[number])
    served_model.refresh()
    found: Any = served_model.engine.find(number)
    found.threads = []
    predict = found.predict

    def noted(*given: Any) -> Any:
        found.threads.append(threading.current_thread())
        return predict(*given)

    found.predict = noted
    return found


@pytest.mark.parametrize(
    ("example_ms", "rows", "here"),
    [(0.05, 1, True), (0.05, MAX_ROWS + 1, False), (0.5, 1, False), (0.0, 1, False), (9.0, 1, False)],
)
async def test_a_fast_shadow_answers_in_the_loop_and_others_beside_it(
    served_model: ServedModel, shadow: Any, example_ms: float, rows: int, *, here: bool
):
    shadow.example_ms = example_ms
    assert (await served_model.infer(tensors(rows, id="s"))).status_code == 200
    await served_model.predictor.shadows.drained()
    assert [thread is threading.current_thread() for thread in shadow.threads] == [here]
    logged = prediction_columns(served_model.log.payloads)["late"].to_pylist()
    assert [row["version"] for row in logged if row["shadow"]] == [shadow.version] * rows
    assert served_model.predictor.shadows.describe() == {"scored": 1, "failed": 0, "dropped": 0}


@pytest.mark.parametrize("refused", [False, True])
async def test_a_shadow_slower_on_a_request_than_on_its_example_leaves_the_loop_and_another_stays(
    served_model: ServedModel, shadow: Any, *, refused: bool
):
    quick_number = served_model.version(0.5)
    served_model.registry.set_traffic("late", {}, shadows=[shadow.version, quick_number])
    served_model.refresh()
    quick = served_model.engine.find(quick_number)
    places: dict[Any, list[bool]] = {shadow: [], quick: []}
    clock = [0.0]

    def place(version: Any, took_s: list[float]) -> None:
        predict, times = version.predict, iter(took_s)

        def timed(*arguments: Any) -> Any:
            places[version].append(threading.current_thread() is threading.main_thread())
            clock[0] += next(times)
            if refused and version is shadow:
                raise ValueError("refused")
            return predict(*arguments)

        version.predict, version.example_ms = timed, 0.05

    place(shadow, [TURN_S / 2, 3 * TURN_S, TURN_S / 2, TURN_S / 2])
    place(quick, [TURN_S / 2] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadows_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        for number in range(4):
            assert (await served_model.infer(tensors(id=f"s{number}"))).status_code == 200
            await served_model.predictor.shadows.drained()
    assert places == {shadow: [True, True, False, False], quick: [True] * 4}


async def test_answers_have_their_turns_between_shadows(served_model: ServedModel, shadow: Any):
    shadow.example_ms = 0.05
    noted = shadow.predict

    def a_turn_long(*given: Any) -> Any:
        until = time.perf_counter() + TURN_S
        while time.perf_counter() <= until:
            pass
        return noted(*given)

    shadow.predict = a_turn_long
    turns: list[int] = []

    async def answer() -> None:
        while len(shadow.threads) < 40:
            turns.append(len(shadow.threads))
            await asyncio.sleep(0)

    asked = (served_model.infer(tensors(id=f"s{i}")) for i in range(40))
    await asyncio.wait_for(asyncio.gather(answer(), *asked), 60)
    assert max(after - before for before, after in itertools.pairwise(turns)) == 1
