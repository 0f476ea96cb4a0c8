"""Whether a model is said to be served: by its own application, by a pool, by none; and while the head is away."""

import threading
from collections.abc import Callable

import pytest

from toque.ray_apps.gateway.services import DeployedModels

Names = frozenset[str]


def deployed(ask: Callable[[], Names | None], **options: float) -> DeployedModels:
    return DeployedModels(ask, **{"patience_s": 60.0, **options})


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"predictor-late"}, True),
        ({"predictor-late-2", "predictor-lat", "pool-payments", "gateway"}, False),  # look-alikes, another workspace's pool
        (set(), False),
        ({"pool"}, True),
        ({"gateway", "generative"}, None),  # its door serves language models of any name
        ({"pool", "generative"}, True),
        (None, None),  # no cluster
    ],
)  # fmt: skip
async def test_a_model_is_served_by_an_application_of_its_own_or_by_its_workspaces_pool(
    names: set[str] | None,
    told: bool | None,  # noqa: FBT001  # what is told has three values
) -> None:
    served = await deployed(lambda: None if names is None else frozenset(names)).tell("default")
    assert served("late") is told


async def test_a_page_does_not_wait_for_a_head_that_is_away_and_asks_it_once() -> None:
    back, asked = threading.Event(), []

    def ask() -> Names:
        asked.append(1)
        back.wait(60)
        return frozenset({"pool"})

    models = deployed(ask, patience_s=0.01, fresh_s=0.0)
    for _ in range(3):
        assert (await models.tell("default"))("late") is None
    assert len(asked) == 1
    back.set()
    models._patience_s = 60
    assert (await models.tell("default"))("late") is True


async def test_a_controller_that_fails_tells_nothing_and_is_asked_again() -> None:
    answers = [RuntimeError("the actor died"), frozenset({"pool"})]

    def ask() -> Names:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    models = deployed(ask, fresh_s=0.0)
    assert [(await models.tell("default"))("late") for _ in range(2)] == [None, True]


async def test_many_requests_ask_the_controller_once_in_a_while() -> None:
    now, asked = [0.0], []

    def ask() -> Names:
        asked.append(1)
        return frozenset()

    models = DeployedModels(ask, patience_s=60, fresh_s=2.0, clock=lambda: now[0])
    for _ in range(5):
        await models.tell("default")
    assert len(asked) == 1
    now[0] = 2.0
    await models.tell("payments")
    assert len(asked) == 2
