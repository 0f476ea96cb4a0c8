"""What the pages of monitors show of alarms and findings, and how an alarm is looked after and silenced."""

import re

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_monitors import raise_alarm
from tests.ray_apps.console.sample_platform import MODEL, NOW
from tests.ray_apps.console.test_pages import HOSTILE, Markup
from toque.functions.monitoring.alarms import Alarms
from toque.functions.runtime.context import use_context

PAGE = f"/ui/monitors/{MODEL}"


def alerts(platform: Platform):
    from toque.functions.alerting.jobs import alert_status

    with use_context(platform.context):
        return alert_status(MODEL)


async def test_standing_alarms_of_all_models_are_listed_newest_first(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get("/ui/monitors")).text
    assert page.index("mean loss is 0.61") < page.index("wind moved by 0.4")
    assert "p99 is" not in page  # it is over


async def test_a_model_shows_what_stands_its_cohorts_and_its_alarms_in_time(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get(PAGE)).text
    assert 'aria-label="wind: value of each cohort"' in page  # the column that drifted goes first
    timeline = page.partition('<ol class="timeline">')[2].partition("</ol>")[0]
    assert re.findall(r"<strong>([^<]+)</strong>", timeline) == [
        "performance/log_loss", "drift/wind", "operations/latency p99", "operations/latency p99",
    ]  # fmt: skip
    chosen = (await (await platform.signed_in("viewer")).get(f"{PAGE}?monitor=drift&subject=hour")).text
    assert 'aria-label="hour: value of each cohort"' in chosen


async def test_scores_of_live_answers_stand_by_version_and_arm_with_their_interval(
    platform: Platform,
) -> None:
    page = (await (await platform.signed_in("viewer")).get(PAGE)).text
    table = page.partition('aria-label="Scores of live answers"')[2].partition("</table>")[0]
    rows = [re.sub(r"<[^>]*>|\s+", " ", row).split() for row in table.partition("<tbody>")[2].split("</tr>")]
    assert [row[:6] for row in rows if row] == [
        ["json", "version", "3", "champion", "20", "0.75"], ["json", "version", "4", "canary", "20", "1"],
    ]  # fmt: skip
    assert f"toque monitor scores {MODEL}" in page


async def test_the_alarms_of_a_model_are_paged_by_cursor(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toque.ray_apps.console.pages.monitors.ROWS", 2)
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(PAGE)).text
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following
    older = (await visitor.get(following[1].replace("&amp;", "&"))).text
    assert "p99 is 210 ms" in older
    assert "p99 is 210 ms" not in page


async def test_an_operator_looks_after_an_alarm_and_silences_one(platform: Platform) -> None:
    visitor = await platform.signed_in("operator")
    await visitor.send(PAGE, f"{PAGE}/acknowledge", about="drift/wind")
    page = (await visitor.get(PAGE)).text
    assert "You look after drift/wind" in page
    assert "a-operator looks after it" in page
    await visitor.send(PAGE, f"{PAGE}/silence", about="performance/log_loss", hours="24", reason="known")
    page = (await visitor.get(PAGE)).text
    assert "Nobody is told of performance/log_loss for 24 hours." in page
    assert [(each.about, each.reason) for each in alerts(platform).silences] == [
        ("performance/log_loss", "known")
    ]
    await visitor.send(PAGE, f"{PAGE}/silence", about="performance/log_loss", hours="0", reason="")
    assert alerts(platform).silences == ()
    await visitor.send(PAGE, f"{PAGE}/silence", about="*", hours="soon", reason="")
    assert "is no whole number of hours" in (await visitor.get(PAGE)).text


@pytest.mark.parametrize("verb", ["acknowledge", "silence", "slices"])
async def test_a_viewer_changes_no_alarm(platform: Platform, verb: str) -> None:
    visitor = await platform.signed_in("viewer")
    assert f"{PAGE}/{verb}" not in re.sub(
        r'<form[^>]*class="row">\s*<span>', "", (await visitor.get(PAGE)).text
    )
    answer = await visitor.send(PAGE, f"{PAGE}/{verb}", about="drift/wind", hours="4", reason="x")
    assert answer.status_code == 403
    assert alerts(platform).standing["drift/wind"].acknowledged_by is None


async def test_no_text_of_an_alarm_becomes_markup(platform: Platform) -> None:
    store = platform.context.store
    alarms = Alarms(MODEL, store=store, clock=lambda: NOW, actor="eve", publish=lambda *_: None)
    raise_alarm(alarms, "drift", HOSTILE, days=0, text=HOSTILE, columns=(HOSTILE,))
    visitor = await platform.signed_in("operator")
    await visitor.send(PAGE, f"{PAGE}/silence", about=HOSTILE, hours="4", reason=HOSTILE)
    for path in ("/ui/monitors", PAGE):
        answer = await visitor.get(path)
        assert answer.status_code == 200
        markup = Markup()
        markup.feed(answer.text)
        assert not [name for name in markup.attributes if name.startswith("on") or name == "style"], path
        assert "alert(1)" in markup.text
