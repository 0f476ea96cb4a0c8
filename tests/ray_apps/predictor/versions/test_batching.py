"""Dynamic batching: when batches form, and that one bad request does not fail the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, ServedModel, tensors
from toque.ray_apps.predictor.versions.batching import Batcher, Batching, BatchingError

Arrays = Mapping[str, np.ndarray]


class Model:
    """Doubles its input, once it may; keeps what it was given."""

    def __init__(self, *, busy: bool = False) -> None:
        self.given: list[list[float]] = []
        self.may = asyncio.Event()
        if not busy:
            self.may.set()

    async def predict(self, inputs: Arrays) -> Arrays:
        x = inputs["x"]
        self.given.append(x.ravel().tolist())
        await self.may.wait()
        if (x < 0).any():
            raise ValueError("a negative number")
        return {"y": x * 2}


def rows(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def ask(batcher: Batcher, *values: float, width: int = 1) -> asyncio.Task[Arrays]:
    inputs = rows(*values, width=width)
    return asyncio.get_running_loop().create_task(batcher.predict(inputs, len(values)))  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_idle_model_answers_at_once_and_a_busy_one_gathers_what_waits():
    model = Model(busy=True)
    batcher = Batcher(model.predict, Batching(max_rows=4))
    first = ask(batcher, 1)
    await turns()
    assert model.given == [[1]]
    others = [ask(batcher, 2, 3), ask(batcher, 4), ask(batcher, 5, 6)]
    await turns()
    model.may.set()
    assert [answer["y"].ravel().tolist() for answer in await asyncio.gather(first, *others)] == [
        [2], [4, 6], [8], [10, 12],
    ]  # fmt: skip
    assert model.given == [[1], [2, 3, 4], [5, 6]]  # the last would make five rows
    assert (batcher.batches, batcher.rows) == (3, 6)


async def test_a_bad_request_in_a_batch_fails_alone():
    model = Model()
    batcher = Batcher(model.predict, Batching(max_rows=8))
    good, bad, other = ask(batcher, 1), ask(batcher, -1), ask(batcher, 3)
    answers = await asyncio.gather(good, bad, other, return_exceptions=True)
    assert isinstance(answers[1], ValueError)
    assert [answers[0]["y"].tolist(), answers[2]["y"].tolist()] == [[[2]], [[6]]]  # type: ignore[index]


async def test_requests_of_other_shapes_are_not_mixed():
    model = Model()
    batcher = Batcher(model.predict, Batching(max_rows=8))
    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2, width=3), ask(batcher, 3))
    assert [answer["y"].shape for answer in answers] == [(1, 1), (1, 3), (1, 1)]


async def test_a_request_whose_caller_gave_up_is_not_scored():
    model = Model(busy=True)
    batcher = Batcher(model.predict, Batching(max_rows=8))
    first = ask(batcher, 1)
    await turns()
    gone, stays = ask(batcher, 2), ask(batcher, 3)
    await turns()
    gone.cancel()
    model.may.set()
    await asyncio.gather(first, stays)
    assert model.given == [[1], [3]]


async def test_with_a_wait_a_batch_goes_when_it_is_full():
    model = Model()
    batcher = Batcher(model.predict, Batching(max_rows=2, max_wait_s=60))
    first = ask(batcher, 1)
    await turns()
    assert model.given == []
    await asyncio.gather(first, ask(batcher, 2))
    assert model.given == [[1, 2]]


async def test_with_a_wait_a_batch_goes_when_the_time_is_up():
    model = Model()
    batcher = Batcher(model.predict, Batching(max_rows=2, max_wait_s=0.01))
    assert (await ask(batcher, 1))["y"].tolist() == [[2]]


async def test_a_model_that_gives_another_number_of_rows_answers_each_alone():
    async def first_row(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"][:1]}

    batcher = Batcher(first_row, Batching(max_rows=8))
    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2))
    assert [answer["y"].tolist() for answer in answers] == [[[1]], [[2]]]


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"max_batch_rows": "many"}, "max_batch_rows='many'"),
        ({"max_batch_rows": "1"}, "from 2"),
        ({"max_batch_rows": "8", "max_batch_wait_ms": "-1"}, "max_batch_wait_ms"),
        ({"max_batch_rows": "8", "max_batch_wait_ms": "nan"}, "max_batch_wait_ms"),
    ],
)
def test_bounds_that_cannot_be_are_refused(tags: dict[str, str], words: str):
    with pytest.raises(BatchingError, match=words):
        Batching.of(tags, SIGNATURE)


def test_bounds_come_from_the_versions_tags():
    assert Batching.of({}, SIGNATURE) is None
    assert Batching.of({"max_batch_rows": "8", "max_batch_wait_ms": "2"}, SIGNATURE) == Batching(8, 0.002)


async def test_a_version_with_the_tag_answers_each_caller_its_own(served_model: ServedModel):
    served_model.registry.promote("late", served_model.version(0.5, tags={"max_batch_rows": "16"}))
    served_model.refresh()

    def body(number: float) -> dict[str, Any]:
        made = tensors()
        made["inputs"][0]["data"] = [number, 0.0]
        return made

    answers = await asyncio.gather(*(served_model.infer(body(i)) for i in range(12)))
    values = [answer.json()["outputs"][0]["data"][0] for answer in answers]
    assert values == [pytest.approx(0.5 + 0.001 * i) for i in range(12)]
    counts = served_model.predictor.describe()["batches"]["2"]
    assert counts["rows"] == 12
    assert counts["batches"] <= 12
