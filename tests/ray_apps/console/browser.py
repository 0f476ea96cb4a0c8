"""A platform that a browser can reach, and somebody at the browser who counts clicks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from tests.waiting import until

if TYPE_CHECKING:
    from tests.ray_apps.console.conftest import Platform

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one"
)
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LOOKS: dict[str, dict[str, Any]] = {
    "light-wide": {"color_scheme": "light", "viewport": WIDE},
    "dark-phone": {"color_scheme": "dark", "viewport": PHONE},
}
"""Colours and size of a browser's window."""


@dataclass
class Served:
    """A platform that a browser can reach."""

    url: str
    platform: Platform


@contextmanager
def serve(platform: Platform) -> Iterator[Served]:
    """Serve a platform on a free port of this machine."""
    config = uvicorn.Config(platform.app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", platform)
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass
class Person:
    """Somebody at a browser, who counts clicks and notes what a page complains of or loads from elsewhere."""

    page: Any
    url: str

    def __post_init__(self) -> None:
        self.clicks = 0
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda asked: self._look(asked.url))

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def sign_in(self, token: str) -> None:
        self.go("/ui/")
        self.page.fill("#token", token)
        self.page.click("text=Sign in >> nth=-1")
        self.page.wait_for_selector(".side")

    def click(self, selector: str) -> None:
        self.clicks += 1
        self.page.click(selector)

    def _note(self, message: Any) -> None:
        if message.type in {"error", "warning"} and "status of 40" not in message.text:
            self.complaints.append(message.text)

    def _look(self, url: str) -> None:
        if not url.startswith(self.url):
            self.elsewhere.append(url)


def person(chromium: Any, served: Served, **options: Any) -> Person:
    """Open a browser in New York."""
    context = chromium.new_context(**{"viewport": WIDE, "timezone_id": "America/New_York"} | options)
    return Person(context.new_page(), served.url)


@pytest.fixture(
    scope="module"
)  # while it runs, this thread has an event loop, which tests of other modules need
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # late: only where there is a browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
