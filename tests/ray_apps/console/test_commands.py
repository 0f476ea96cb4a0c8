"""Under every table and chart stands what prints the same, and each such command and request exists."""

import re
import shlex
from html import unescape
from html.parser import HTMLParser

import pytest

from tests.docs.commands import check, check_span, routes
from tests.docs.pages import ROOT, Page
from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.test_pages import PAGES
from toque.functions.pages.rendering import make_templates, shell

README = Page(ROOT / "README.md")
VOID = {"area", "br", "hr", "img", "input", "link", "meta", "rect", "path", "line", "source"}


class Sections(HTMLParser):
    """Outermost sections of a page, and the page itself: the figures in each, and the commands."""

    def __init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, bool]] = []
        self._in = 0
        self._command: list[str] | None = None
        self.figures: dict[int, list[str]] = {}
        self.commands: dict[int, list[str]] = {}
        self.hints: list[str] = []
        self._sections = 0
        self._hint = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = given.get("class", "").split()
        if tag == "section" and not self._in:
            self._sections += 1
            self._in = self._sections
            self._depth = len(self._open)
        if (tag == "table" and "form" not in names) or (tag == "svg" and "chart" in names):
            self.figures.setdefault(self._in, []).append(f"{tag} {given.get('aria-label', '')}")
        if tag == "p" and "command" in names:
            self._command = []
        if tag == "div" and "empty" in names:
            self._hint = True
        if tag not in VOID:
            self._open.append((tag, tag == "section"))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open[-1][0] != tag:
            self._open.pop()
        if self._open:
            self._open.pop()
        if tag == "section" and self._in and len(self._open) == self._depth:
            self._in = 0
        if tag == "p" and self._command is not None:
            self.commands.setdefault(self._in, []).append("".join(self._command).partition(":")[2].strip())
            self._command = None
        if tag == "div":
            self._hint = False

    def handle_data(self, data: str) -> None:
        if self._command is not None:
            self._command.append(data)
        elif self._hint and data.startswith("toque "):
            self.hints.append(data)


def check_same(text: str) -> None:
    """Check that a command or a request exists."""
    if text.startswith("toque "):
        return check(shlex.split(text), README)
    method, path = text.split(" ", 1)
    assert any(
        method == known and re.fullmatch(pattern, path.partition("?")[0]) for known, pattern in routes()
    ), text
    return None


@pytest.mark.parametrize("path", PAGES)
async def test_what_a_table_or_chart_shows_is_printed_by_a_command_or_request_that_exists(
    platform: Platform, path: str
) -> None:
    page = Sections()
    page.feed((await (await platform.signed_in("admin")).get(path)).text)
    assert [names for at, names in page.figures.items() if not page.commands.get(at)] == []
    for each in (text for found in page.commands.values() for text in found):
        check_same(each)
    for each in page.hints:
        check_span(each)


def test_no_text_ends_the_word_of_a_command_in_which_it_stands() -> None:
    hostile = "x'; rm -rf ~; echo '"
    parts = make_templates().get_template("parts.html").module
    shown = str(parts.call("list_predictions", {"entity": hostile, "limit": 3}))
    text = re.search(r"<code>(.*?)</code>", shown, re.DOTALL)
    assert text
    words = shlex.split(unescape(text[1]))
    assert words[:4] == ["toque", "run", "list_predictions", "--json"]
    assert len(words) == 5
    assert shlex.split(f"toque monitor trace {shell(hostile)}")[3:] == [hostile]


def test_the_check_refuses_a_command_that_is_not_there() -> None:
    with pytest.raises(Exception, match="list_nothing"):
        check_same("toque run list_nothing")
    with pytest.raises(AssertionError):
        check_same("GET /nothing")
