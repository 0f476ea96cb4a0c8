"""What people come for, each done in Chromium in at most six clicks and without the command line.

Approving a version, moving traffic to it, stopping a rollout and revoking a token are in `test_browser`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from functions.alerting.jobs import alert_status
from functions.prediction_log import LABELS_TABLE
from functions.prediction_log.records import LABELS
from functions.quotas import set_quota
from functions.runtime.context import use_context
from functions.runtime.durable.invocation import ledger_of
from registry import Table
from tests.ray_apps.console.browser import PHONE, Person, Served, needs_chromium, person, serve
from tests.ray_apps.console.conftest import make_platform
from tests.ray_apps.console.sample_platform import MODEL, NOW
from tests.ray_apps.console.sample_runs import RUNS
from tests.ray_apps.console.sample_work import WORK

pytestmark = [pytest.mark.slow, needs_chromium]
MOST_CLICKS = 6
REPORT = "<h1>Weekly report</h1>"


@pytest.fixture(scope="module")
def served(filled: Path, counting: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One platform for all tasks, as each changes what no other looks at."""
    store = tmp_path_factory.mktemp("tasks") / "store"
    shutil.copytree(filled, store)
    platform = make_platform(store, counting)
    platform.context.store.put(f"reports/{MODEL}.html", REPORT.encode())
    with use_context(platform.context):
        set_quota("forecasting", members=["ada"])
    labels = [("flight-07", 0.0), ("flight-11", 1.0), ("flight-12", 0.0)]
    rows = [
        {
            "prediction_id": name,
            "label": label,
            "observed_at": NOW,
            "received_at": NOW,
            "day": f"{NOW:%Y-%m-%d}",
        }
        for name, label in labels
    ]
    Table(platform.context.store, LABELS_TABLE).append(
        pa.Table.from_pylist(rows, schema=LABELS), partition_by=["day"]
    )
    with serve(platform) as running:
        yield running


@pytest.fixture
def visit(chromium: Any, served: Served) -> Iterator[Callable[..., Person]]:
    """Open a browser, signed in by a role; at the end clicks are counted. on_phone: narrow and dark."""
    came: list[Person] = []

    def open_browser(role: str, *, on_phone: bool = False) -> Person:
        options = {"viewport": PHONE, "color_scheme": "dark"} if on_phone else {}
        came.append(person(chromium, served, **options))
        came[-1].sign_in(served.platform.tokens[role])
        return came[-1]

    yield open_browser
    for each in came:
        assert each.clicks <= MOST_CLICKS
        assert not each.complaints
        each.page.context.close()


def test_one_finds_why_a_version_is_not_promoted(visit: Callable[..., Person]) -> None:
    visitor = visit("viewer", on_phone=True)
    visitor.click(f"[aria-label='Rollouts under way'] >> text={MODEL}")
    visitor.page.wait_for_selector("h1 >> text=Version 4 against 3")
    assert "What is missing" in visitor.page.inner_text(".verdict")


def test_one_finds_the_worst_prediction_and_what_it_was_made_of(visit: Callable[..., Person]) -> None:
    visitor = visit("operator")
    visitor.click(".side >> text=Predictions")
    visitor.page.fill("#model", "price-of-fuel")
    visitor.page.select_option("#order", "worst")
    visitor.click("text=Find >> nth=-1")
    rows = visitor.page.locator("[aria-label=Predictions] tbody tr")
    assert "0.75" in rows.nth(0).inner_text()  # a late flight that was given 0.25
    visitor.click("[aria-label=Predictions] tbody a >> nth=0")
    visitor.page.wait_for_selector("text=What it was made of")
    assert "flight-11" in visitor.page.inner_text("h1")
    assert "12.5" in visitor.page.inner_text("main")


def test_runs_are_compared_and_the_best_becomes_a_version(
    visit: Callable[..., Person], served: Served
) -> None:
    visitor = visit("operator")
    visitor.click(".side >> text=Experiments")
    visitor.click(f"main >> text={MODEL}")
    visitor.click(f"text=Compare the first {len(RUNS)}")
    best = visitor.page.locator("tr:has(th:text-is('valid_loss')) td").all_inner_texts()
    at = next(at for at, text in enumerate(best) if text.endswith("least"))
    name = visitor.page.locator("thead th a").nth(at).inner_text()
    visitor.click(f"thead >> text={name}")
    visitor.click("text=Register it as a version")
    visitor.page.fill("details #model", MODEL)
    visitor.page.select_option("#path", "model")
    visitor.click("text=Register a version")
    visitor.page.wait_for_selector("text=is registered from this run")
    newest = max(served.platform.context.registry().get_model(MODEL).versions)
    made = served.platform.context.registry().get_version(MODEL, newest)
    losses = {
        run.id: run.metrics["valid_loss"] for run in served.platform.context.registry().search_runs(MODEL)
    }
    assert made.lineage.run == min(losses, key=lambda run: losses[run])


def test_a_dead_letter_is_run_again(visit: Callable[..., Person], served: Served) -> None:
    visitor = visit("operator", on_phone=True)
    visitor.click("[aria-label='Dead letters'] >> text=refresh_flights")
    visitor.click("text=Run it again")
    visitor.page.wait_for_selector("text=It is queued again")
    assert ledger_of(served.platform.context).find_status(WORK["dead"]) == "queued"


def test_an_alarm_is_looked_after_and_another_silenced(visit: Callable[..., Person], served: Served) -> None:
    visitor = visit("operator")
    visitor.click("[aria-label='Alarms that stand'] >> text=drift/wind")
    visitor.click("text=I look after it")
    visitor.page.wait_for_selector("text=looks after it")
    silence = visitor.page.locator("article:has-text('performance/log_loss')")
    silence.locator("input[name=reason]").fill("the labels of Sunday are late")
    visitor.clicks += 1
    silence.locator("button >> text=Silence").click()
    visitor.page.wait_for_selector("text=Nobody is told of performance/log_loss for 24 hours")
    with use_context(served.platform.context):
        status = alert_status(MODEL)
    assert status.standing["drift/wind"].acknowledged_by == "a-operator"
    assert [each.about for each in status.silences] == ["performance/log_loss"]


def test_one_sees_who_changed_the_champion_in_a_month(visit: Callable[..., Person]) -> None:
    visitor = visit("admin", on_phone=True)
    visitor.click(".side >> text=Audit")
    visitor.page.select_option("select[name=kind]", "model")
    visitor.page.fill("input[name=since]", "2026-01-01")
    visitor.page.fill("input[name=until]", "2026-02-28")
    visitor.click("main form button")
    visitor.page.wait_for_selector(f"tr:has-text('{MODEL}'):has-text('better in every month')")
    assert "ada" in visitor.page.inner_text("tr:has-text('better in every month')")


def test_one_finds_a_stale_feature_and_who_uses_it(visit: Callable[..., Person], served: Served) -> None:
    visitor = visit("viewer")
    visitor.click(".side >> text=Features")
    visitor.click("tr:has-text('stale') a >> nth=0")
    visitor.page.wait_for_selector("text=is older than the")
    told = visitor.page.inner_text("main")
    assert "old_weather" in told
    assert "old_flights" in told


def test_one_opens_the_weekly_report(visit: Callable[..., Person]) -> None:
    visitor = visit("viewer", on_phone=True)
    visitor.click(".side >> text=Reports")
    visitor.click(f"text={MODEL}.html")
    visitor.page.wait_for_selector("h1 >> text=Weekly report")


def test_one_sees_what_a_team_cost(visit: Callable[..., Person]) -> None:
    visitor = visit("viewer")
    visitor.click(".side >> text=Costs")
    visitor.click("text=by team")
    visitor.page.wait_for_selector("th >> text=forecasting")
    visitor.click("th >> text=forecasting")
    visitor.page.wait_for_selector("h1 >> text=Costs of forecasting")
    assert "2026-03-01" in visitor.page.inner_text("main")
