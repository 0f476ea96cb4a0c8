"""The page of the queue: what waits for what, and what each team may have and has spent."""

import re

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_platform import MODEL
from tests.ray_apps.console.sample_work import Work
from toque.functions import Demand, function
from toque.functions.quotas import set_quota
from toque.functions.runtime.context import use_context


@function(http=True, demand=lambda **_: Demand(cpus=4, gpus=1))
def tune_on_a_card(model: str) -> int:
    """Train a model further on a card."""
    return len(model)


async def test_the_queue_tells_what_each_experiment_waits_for_and_what_its_team_may_have(
    platform: Platform,
) -> None:
    with use_context(platform.context):
        set_quota("forecasting", gpus=1, members=["ada"], gpu_hours=10)
    work = Work(platform.context.store)
    first, second = (work.submit(f"tune-{number}", tune_on_a_card, model=MODEL) for number in range(2))
    page = (await (await platform.signed_in("viewer")).get("/ui/queue")).text
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    (turn,) = [row for row in rows if first in row]
    (waits,) = [row for row in rows if second in row]
    assert "its turn" in turn
    assert "room in the quota of its team" in waits
    assert f'href="/ui/invocations/{second}"' in waits
    assert page.index(first) < page.index(second)
    (team,) = [row for row in rows if ">forecasting</a>" in row]
    assert "ada" in team
    (budget,) = [row for row in rows if "<th" in row and ">10<" in row]
    assert "forecasting" in budget
    assert "/ui/costs?" in budget
