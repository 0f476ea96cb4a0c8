"""What people come for, each done in Chromium in at most six clicks, light and wide, dark and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.ray_apps.console.browser import LOOKS, Person, Served, needs_chromium, person, serve
from tests.ray_apps.console.conftest import make_platform
from tests.ray_apps.console.sample_platform import MODEL, NOW
from tests.ray_apps.console.sample_runs import RUNS
from tests.ray_apps.console.sample_work import WORK
from tests.ray_apps.console.tasks import MOST_CLICKS, TASKS, Scene, Task
from toque.functions.alerting.jobs import alert_status
from toque.functions.prediction_log import LABELS_TABLE
from toque.functions.prediction_log.records import LABELS
from toque.functions.quotas import set_quota
from toque.functions.rollout import rollout_status
from toque.functions.runtime.context import use_context
from toque.functions.runtime.durable.invocation import ledger_of
from toque.registry import Access, Table

pytestmark = [pytest.mark.slow, needs_chromium]
SCENE = Scene(
    model=MODEL,
    failed=2,
    lacks="gate 'offline'",
    waiting=5,
    answered="price-of-fuel",
    made_of="12.5",
    experiment=MODEL,
    compared=len(RUNS),
    best="valid_loss",
    dead="refresh_flights",
    told="drift/wind",
    silenced="performance/log_loss",
    since="2026-01-01",
    until="2026-02-28",
    changed_by="ada",
    reason="better in every month",
    token="a-caller",  # its name
    stale="old_weather",
    users="old_flights",
    report=f"{MODEL}.html",
    report_says="Weekly report",
    team="forecasting",
)


@pytest.fixture(scope="module", params=list(LOOKS))
def look(request: pytest.FixtureRequest) -> str:
    """Name of the colours and the size of the browser's window."""
    return str(request.param)


@pytest.fixture(scope="module")
def served(
    look: str, filled: Path, counting: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One platform for all tasks of a look, as no task changes what a later one needs."""
    store = tmp_path_factory.mktemp(f"tasks-{look}") / "store"
    shutil.copytree(filled, store)
    platform = make_platform(store, counting)
    platform.context.store.put(f"reports/{MODEL}.html", b"<h1>Weekly report</h1>")
    with use_context(platform.context):
        set_quota("forecasting", members=["ada"])
    given = {"observed_at": NOW, "received_at": NOW, "day": f"{NOW:%Y-%m-%d}"}
    labels = {"flight-07": 0.0, "flight-11": 1.0, "flight-12": 0.0}
    rows = [{"prediction_id": name, "label": label} | given for name, label in labels.items()]
    Table(platform.context.store, LABELS_TABLE).append(
        pa.Table.from_pylist(rows, schema=LABELS), partition_by=["day"]
    )
    with serve(platform) as running:
        yield running


@pytest.fixture(scope="module")
def at_home(chromium: Any, served: Served, look: str) -> Iterator[Callable[[str], Person]]:
    """Somebody of a role on the first page, who has clicked nothing yet; each signs in once."""
    there: dict[str, Person] = {}

    def visitor(role: str) -> Person:
        if role in there:
            there[role].go("/ui/")
        else:
            there[role] = person(chromium, served, **LOOKS[look])
            there[role].sign_in(served.platform.tokens[role])
        there[role].clicks = 0
        return there[role]

    yield visitor
    for each in there.values():
        each.page.context.close()


@pytest.mark.parametrize(("role", "task"), TASKS, ids=[task.__name__ for _, task in TASKS])
def test_a_task_takes_few_clicks(at_home: Callable[[str], Person], role: str, task: Task) -> None:
    visitor = at_home(role)
    task(visitor, SCENE)
    assert visitor.clicks <= MOST_CLICKS
    assert not visitor.complaints
    assert not visitor.elsewhere


def test_the_tasks_changed_what_they_said(served: Served) -> None:
    context = served.platform.context
    registry = context.registry()
    with use_context(context):
        assert rollout_status(MODEL).outcomes[-1].stage == "rolled_back"
        alerts = alert_status(MODEL)
    assert alerts.standing["drift/wind"].acknowledged_by == "a-operator"
    assert [each.about for each in alerts.silences] == ["performance/log_loss"]
    assert [(arm.version, arm.share) for arm in registry.traffic(MODEL).arms] == [(3, 0.9), (5, 0.1)]
    assert [each.actor for each in registry.get_version(MODEL, 5).approvals] == ["a-approver"]
    made = registry.get_version(MODEL, max(registry.get_model(MODEL).versions))
    losses = {run.id: run.metrics["valid_loss"] for run in registry.search_runs(MODEL)}
    assert made.lineage.run == min(losses, key=lambda run: losses[run])
    assert ledger_of(context).find_status(WORK["dead"]) == "queued"
    (token,) = [each for each in Access(context.store, actor="t").list_tokens() if each.name == "a-caller"]
    assert token.revoked_at is not None


def test_one_finds_how_far_a_rollout_is_and_what_is_missing(
    chromium: Any, filled: Path, counting: str, tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path / "store")
    with serve(make_platform(tmp_path / "store", counting)) as running:
        visitor = person(chromium, running, **LOOKS["dark-phone"])
        visitor.sign_in(running.platform.tokens["viewer"])
        visitor.click(f"[aria-label='Rollouts under way'] >> text={MODEL}")
        visitor.page.wait_for_selector("h1 >> text=Version 4 against 3")
        assert "What is missing" in visitor.page.inner_text(".verdict")
        visitor.page.context.close()
