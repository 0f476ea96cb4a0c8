"""Where shadows are scored: fast ones between answers, slow ones and large requests in a thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

import pytest

from functions.prediction_log.records import prediction_columns
from ray_apps.predictor.inference.shadows import MAX_ROWS, TURN_S
from tests.ray_apps.predictor.conftest import Kitchen, tensors


@pytest.fixture
def shadow(kitchen: Kitchen) -> Any:
    """A shadow that notes the thread it answers in."""
    number = kitchen.version(0.5)
    kitchen.registry.set_traffic("late", {}, shadows=[number])
    kitchen.settle()
    found: Any = kitchen.engine.find(number)
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
    kitchen: Kitchen, shadow: Any, example_ms: float, rows: int, *, here: bool
):
    shadow.example_ms = example_ms
    assert (await kitchen.infer(tensors(rows, id="s"))).status_code == 200
    await kitchen.predictor.shadows.drained()
    assert [thread is threading.current_thread() for thread in shadow.threads] == [here]
    logged = prediction_columns(kitchen.log.payloads)["late"].to_pylist()
    assert [row["version"] for row in logged if row["shadow"]] == [shadow.version] * rows
    assert kitchen.predictor.shadows.describe() == {"scored": 1, "failed": 0, "dropped": 0}


async def test_answers_have_their_turns_between_shadows(kitchen: Kitchen, shadow: Any):
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

    asked = (kitchen.infer(tensors(id=f"s{i}")) for i in range(40))
    await asyncio.wait_for(asyncio.gather(answer(), *asked), 30)
    assert max(after - before for before, after in itertools.pairwise(turns)) == 1
