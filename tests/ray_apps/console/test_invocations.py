"""What the pages of functions and invocations show and change, and for whom."""

import re

import pytest
from markupsafe import escape

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_work import WORK, Work
from tests.ray_apps.console.test_pages import HOSTILE, Markup
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.values import get_value


def rows(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/ui/invocations/(\w+)"', page)


async def test_invocations_are_listed_by_state_and_function(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    everything = rows((await visitor.get("/ui/invocations")).text)
    assert everything[0] == WORK["queued"]
    assert everything[-1] == WORK["succeeded"]
    for state in ("dead", "waiting", "running", "failed", "queued"):
        assert rows((await visitor.get(f"/ui/invocations?state={state}")).text) == [WORK[state]]
    counted = rows((await visitor.get("/ui/invocations?function=count_flights")).text)
    assert len(counted) == 3
    assert (
        "No invocation is dead of nothing"
        in (await visitor.get("/ui/invocations?state=dead&function=nothing")).text
    )


async def test_invocations_are_paged_by_cursor(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toque.ray_apps.console.pages.functions.ROWS", 4)
    visitor = await platform.signed_in("viewer")
    path, found = "/ui/invocations", []
    while path:
        page = (await visitor.get(path)).text
        found += rows(page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following[1].replace("&amp;", "&") if following else ""
    assert len(found) == len(set(found)) == 10


async def test_a_dead_letter_is_redriven_by_a_button(platform: Platform) -> None:
    page = f"/ui/invocations/{WORK['dead']}"
    visitor = await platform.signed_in("operator")
    assert "weather.example answered 503 for &lt;EWR&gt;" in (await visitor.get(page)).text
    answer = await visitor.send(page, f"{page}/redrive")
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert "It is queued again" in (await visitor.get(page)).text
    assert ledger_of(platform.context).find_status(WORK["dead"]) == "queued"
    assert ledger_of(platform.context).dead_letters.all() == ()


async def test_a_dead_letter_is_given_up_and_an_open_one_is_cancelled(platform: Platform) -> None:
    visitor, ledger = await platform.signed_in("operator"), ledger_of(platform.context)
    dead, queued = (f"/ui/invocations/{WORK[state]}" for state in ("dead", "queued"))
    await visitor.send(dead, f"{dead}/purge")
    assert ledger.dead_letters.all() == ()
    await visitor.send(queued, f"{queued}/cancel")
    assert ledger.find_status(WORK["queued"]) == "cancelled"
    await visitor.send(queued, f"{queued}/purge")
    assert "only dead letters are purged" in (await visitor.get(queued)).text


async def test_a_workflow_gets_the_signal_that_it_waits_for(platform: Platform) -> None:
    page = f"/ui/invocations/{WORK['waiting']}"
    visitor = await platform.signed_in("operator")
    shown = (await visitor.get(page)).text
    assert "It waits for the signal approval" in shown
    assert shown.index("load_source") < shown.index("train_model")
    refused = await visitor.send(page, f"{page}/signal", name="approval", value="{not json")
    assert refused.status_code == 422
    assert "value: not JSON" in refused.text
    assert 'value="{not json"' in refused.text
    await visitor.send(page, f"{page}/signal", name="approval", value='{"by": "ada"}')
    record = ledger_of(platform.context).read(WORK["waiting"])
    assert record.signals == {"approval": {"by": "ada"}}
    assert record.waits_for is None


@pytest.mark.parametrize("state", ["queued", "running", "failed", "waiting"])
async def test_a_signal_is_offered_only_where_one_is_awaited(platform: Platform, state: str) -> None:
    page = f"/ui/invocations/{WORK[state]}"
    shown = (await (await platform.signed_in("operator")).get(page)).text
    assert f"{page}/cancel" in shown
    assert (f"{page}/signal" in shown) is ("It waits for the signal" in shown)


@pytest.mark.parametrize(
    ("state", "verb"), [("dead", "redrive"), ("dead", "purge"), ("queued", "cancel"), ("waiting", "signal")]
)
async def test_a_viewer_is_offered_no_change_and_refused_one(
    platform: Platform, state: str, verb: str
) -> None:
    page = f"/ui/invocations/{WORK[state]}"
    visitor = await platform.signed_in("viewer")
    assert f"{page}/{verb}" not in (await visitor.get(page)).text
    answer = await visitor.send(page, f"{page}/{verb}", name="approval", value="1")
    assert answer.status_code == 403
    assert ledger_of(platform.context).find_status(WORK[state]) == state


async def test_the_functions_page_names_the_next_run_of_each_schedule(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get("/ui/functions")).text
    assert 'title="2026-03-03 04:30:00 UTC"' in page  # half past five in Berlin
    assert "Load the flights of yesterday and materialise their features." in page


async def test_the_functions_page_says_in_words_when_a_function_runs(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    for path in (
        "/ui/functions",
        *(f"/ui/functions/{name}" for name in ("refresh_flights", "record_feature_health")),
    ):
        page = (await visitor.get(path)).text
        assert "Cron(" not in page
        assert "OnEvent(" not in page


async def test_a_function_is_called_from_its_page_by_those_who_may(platform: Platform) -> None:
    page = "/ui/functions/refresh_flights"
    visitor = await platform.signed_in("operator")
    shown = (await visitor.get(page)).text
    assert '<label for="argument:days">days' in shown
    for days, refusal in (
        ("x", "days: &#39;x&#39; is not integer"),
        ("1.5", "days: &#39;1.5&#39; is not integer"),
    ):
        answer = await visitor.send(
            page, f"{page}/call", **{"argument:days": days, "argument:airports": "<JFK>\nLGA"}
        )
        assert answer.status_code == 422
        assert refusal in answer.text
        assert f">{escape('<JFK>')}\nLGA</textarea>" in answer.text  # nobody types it again
    answer = await visitor.send(
        page, f"{page}/call", **{"argument:days": "7", "argument:airports": "JFK\nLGA"}
    )
    made = answer.headers["location"].rpartition("/")[2]
    record = ledger_of(platform.context).read(made)
    assert (record.function, record.caller) == ("refresh_flights", "a-operator")
    assert get_value(platform.context.store, record.arguments) == {"days": 7, "airports": ["JFK", "LGA"]}
    assert made in (await visitor.get("/ui/invocations")).text
    assert "Queue it" not in (await visitor.get("/ui/functions/forget_flights")).text  # for admins
    viewer = await platform.signed_in("viewer")
    assert "Queue it" not in (await viewer.get(page)).text
    assert (await viewer.send(page, f"{page}/call")).status_code == 403


async def test_no_text_of_a_call_a_failure_or_a_log_becomes_markup(platform: Platform) -> None:
    work = Work(platform.context.store)
    dead = work.submit("hostile", airports=[HOSTILE])
    work.die(dead, type="<b>E</b>", message=HOSTILE, traceback=HOSTILE)
    waiting = work.start(work.submit("waits", airports=[HOSTILE]))
    work.add(waiting, {"kind": "waiting", "signal": HOSTILE[:40]})
    visitor = await platform.signed_in("admin")
    for path in ("/ui/invocations", f"/ui/invocations/{dead}", f"/ui/invocations/{waiting}",
                 "/ui/functions/refresh_flights", f"/ui/invocations/{WORK['succeeded']}"):  # fmt: skip
        markup = Markup()
        markup.feed((await visitor.get(path)).text)
        assert "<script>alert" not in "".join(markup.scripts)
        assert not {"b", "i"} & markup.tags, path
        assert not [name for name in markup.attributes if name.startswith("on") or name == "style"], path
