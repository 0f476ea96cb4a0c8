"""The home page names what needs somebody, each with a link to where it is dealt with, and no more than that."""

import re
import shutil
from pathlib import Path

import pytest

from tests.ray_apps.console.conftest import Platform, make_platform
from tests.ray_apps.console.sample_monitors import raise_alarm
from tests.ray_apps.console.sample_platform import MODEL, NOW
from tests.ray_apps.console.sample_runs import RUNS
from tests.ray_apps.console.sample_work import WORK, Work
from tests.ray_apps.console.test_pages import HOSTILE, Markup
from toque.functions.monitoring.alarms import Alarms
from toque.registry import ModelPolicy


def part(page: str, title: str) -> str:
    """Cut one part out of what needs somebody."""
    found = re.search(rf"<h3><a [^>]*>{title}</a>.*?</section>", page, re.DOTALL)
    assert found, title
    return found[0]


async def test_alarms_dead_letters_and_failed_runs_link_to_their_pages(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get("/ui/")).text
    alarms = part(page, "Alarms that stand")
    assert alarms.index("performance/log_loss") < alarms.index("drift/wind")
    assert "p99" not in alarms  # it is over
    assert f'href="/ui/monitors/{MODEL}?monitor=drift&amp;subject=wind"' in alarms
    assert f'href="/ui/invocations/{WORK["dead"]}"' in part(page, "Dead letters")
    assert f'href="/ui/runs/{RUNS[6]}"' in part(page, "Runs of the last 3 days that failed")
    assert "ValueError: &lt;no&gt; rows" in page
    assert f'href="/ui/models/{MODEL}/versions/5"' in part(page, "Versions that wait for approval")


async def test_an_alarm_that_somebody_looks_after_says_who(platform: Platform) -> None:
    operator = await platform.signed_in("operator")
    assert "a-operator" not in part((await operator.get("/ui/")).text, "Alarms that stand")
    await operator.send(f"/ui/monitors/{MODEL}", f"/ui/monitors/{MODEL}/acknowledge", about="drift/wind")
    assert "a-operator" in part((await operator.get("/ui/")).text, "Alarms that stand")


async def test_what_was_dealt_with_needs_nobody_any_more(platform: Platform) -> None:
    operator = await platform.signed_in("operator")
    await operator.send(f"/ui/invocations/{WORK['dead']}", f"/ui/invocations/{WORK['dead']}/purge")
    assert "Dead letters" not in (await operator.get("/ui/")).text


async def test_a_budget_that_is_spent_is_on_the_home_page_and_every_budget_among_the_monitors(
    platform: Platform,
) -> None:
    viewer = await platform.signed_in("viewer")
    budgets = part((await viewer.get("/ui/")).text, "Error budgets that are spent or burn")
    assert "quick is spent: 60 of 60 answers were bad" in budgets
    assert ">answers<" not in budgets
    monitors = (await viewer.get("/ui/monitors")).text
    assert ">answers<" in monitors
    assert "100.0\u202f%" in monitors  # of its budget is left


async def test_versions_that_wait_are_paged_by_cursor_each_once(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = platform.context.registry()
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "weights.bin").write_bytes(b"x")
    for model in ("early", "zeta"):
        policy = ModelPolicy(guarded=frozenset({"champion"}), approvals=1)
        registry.create_model(model, policy=policy)
        for _ in range(3):
            registry.create_version(model, tmp_path / "v")
    registry.as_actor("ada").approve("zeta", 2)
    monkeypatch.setattr("toque.ray_apps.console.pages.models.ROWS", 2)
    monkeypatch.setattr("toque.functions.resources.models._AHEAD", 1)
    visitor, path = await platform.signed_in("viewer"), "/ui/approvals"
    seen: list[str] = []
    while path:
        page = (await visitor.get(path)).text
        seen += re.findall(r'<th scope="row"><a href="/ui/models/([^"]+)"', page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following[1].replace("&amp;", "&") if following else ""
    waiting = ["early/3", "early/2", "early/1", f"{MODEL}/5", "zeta/3", "zeta/1"]
    assert [each.replace("/versions", "") for each in seen] == waiting


async def test_no_text_of_what_needs_somebody_becomes_markup(platform: Platform) -> None:
    store = platform.context.store
    alarms = Alarms(MODEL, store=store, clock=lambda: NOW, actor="eve", publish=lambda *_: None)
    raise_alarm(alarms, "drift", HOSTILE, days=0, text=HOSTILE)
    Work(store).die(Work(store).submit("hostile"), type=HOSTILE, message=HOSTILE)
    markup = Markup()
    markup.feed((await (await platform.signed_in("viewer")).get("/ui/")).text)
    assert markup.text.count("alert(1)") >= 4
    assert not {"b", "i"} & markup.tags
    assert not [name for name in markup.attributes if name.startswith("on") or name == "style"]


async def test_what_cannot_be_told_does_not_take_the_rest_away(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "store")
    viewer = await make_platform(tmp_path / "store", project="no_such_project").signed_in("viewer")
    page = (await viewer.get("/ui/")).text
    assert "This cannot be told now" in part(page, "Error budgets that are spent or burn")
    assert "drift/wind" in page
    assert "This cannot be told now" not in part(page, "Dead letters")
