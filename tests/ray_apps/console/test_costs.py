"""Costs are summed by function, caller and day, and priced where prices are known."""

import pytest

from tests.ray_apps.console.conftest import Platform
from toque.functions.maintenance.costs import sum_costs
from toque.functions.quotas import set_quota
from toque.functions.resources import invocations
from toque.functions.runtime.context import use_context
from toque.functions.runtime.receipt import Prices
from toque.ray_apps.console.pages.costs import _money


async def test_costs_are_summed_by_function_caller_and_day(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get("/ui/costs")).text
    assert "Prices are not known" in page
    for name in ("count_flights", "refresh_flights", ">all<"):
        assert name in page
    by_caller = (await visitor.get("/ui/costs?by=caller&days=30")).text
    assert ">ada<" in by_caller
    assert "2026-03-01" in (await visitor.get("/ui/costs?by=day&of=count_flights")).text
    assert ">no model<" in (await visitor.get("/ui/costs?by=model")).text
    assert "No invocation of the last" in (await visitor.get("/ui/costs?of=nothing")).text


async def test_a_team_costs_what_its_members_cost(platform: Platform) -> None:
    with use_context(platform.context):
        set_quota("forecasting", members=["ada", "grace"])
    page = (await (await platform.signed_in("viewer")).get("/ui/costs?by=team")).text
    assert ">forecasting</a>" in page
    assert ">ada<" not in page


async def test_a_page_of_costs_shows_what_is_known_and_says_what_is_not(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = await platform.signed_in("viewer")
    monkeypatch.setattr(invocations, "_KNOWN_WITHIN_S", -1.0)
    page = (await visitor.get("/ui/costs")).text
    assert "are not summed yet" in page
    assert "count_flights" not in page
    with use_context(platform.context):
        assert sum_costs(days=3_650) > 0
    page = (await visitor.get("/ui/costs")).text
    assert "count_flights" in page
    assert "not summed yet" not in page
    assert "since the last sum is missing" in page
    monkeypatch.undo()
    assert "sum_costs" not in (await visitor.get("/ui/costs")).text


async def test_costs_older_than_the_days_that_are_asked_for_are_left_out(platform: Platform) -> None:
    headers = {"Authorization": f"Bearer {platform.tokens['viewer']}"}
    visitor = platform.visitor(**headers)
    assert (await visitor.get("/costs?days=1")).json() == []  # all were submitted a day and some hours ago
    assert len((await visitor.get("/costs?days=2")).json()) == 2


def test_a_price_is_that_of_the_platform() -> None:
    prices = Prices(currency="EUR", cpu_hour=0.04, gpu_hour=2, store_reads_1000=0.4, store_writes_1000=5)
    row = {"cpu_s": 7_200.0, "gpu_s": 360.0, "store_reads": 500, "store_writes": 100}
    hours = prices.money(cpu_s=row["cpu_s"], gpu_s=row["gpu_s"])
    assert _money(row, prices.model_dump()) == pytest.approx(hours + 0.2 + 0.5)
