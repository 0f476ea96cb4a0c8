"""The functions of docs/functions.md and docs/durable-functions.md run from a shell and over HTTP, as those pages say."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.commands import commands_of
from tests.docs.conftest import PROJECT, AskedPlatform
from tests.docs.pages import ROOT, Page
from tests.waiting import until
from toque.functions import Context, Invocation, use_context
from toque.functions.__main__ import main as functions_main
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.invocation import executor_of
from toque.functions.runtime.durable.record import Record
from toque.ray_apps.cli import main as toque_main
from toque.registry import open_store

FUNCTIONS, DURABLE = Page(ROOT / "docs" / "functions.md"), Page(ROOT / "docs" / "durable-functions.md")
MODULES = ("hello", "orders", "texts")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files that the pages tell to save, in the working directory."""
    for page in (FUNCTIONS, DURABLE):
        for block in page.blocks:
            if block.file_name:
                (tmp_path / block.file_name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.discover(
        (*catalog.PLATFORM, PROJECT)
    )  # now: else the test would be the first to import and forget them
    monkeypatch.setattr(catalog, "PLATFORM", ())
    monkeypatch.setattr(catalog, "_declared", {})
    monkeypatch.setenv("API_KEY", "sesame")
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Context]:
    """A store that this process works on."""
    url = (tmp_path / "store").as_uri()
    with use_context(Context(open_store(url), url, actor="ada")) as used:
        yield used
        executor_of(used).close()


def shell_commands(page: Page, program: str) -> list[list[str]]:
    """Commands of the page's blocks that begin with `program`, without it."""
    blocks = [block for block in page.blocks if block.language == "bash"]
    head = program.split()
    return [
        words[len(head) :]
        for block in blocks
        for words in commands_of(block)
        if words[: len(head)] == head and "ray" not in words
    ]


def run_here(page: Page, capsys: pytest.CaptureFixture[str]) -> str:
    """What the page's commands without a platform print, one after the other."""
    commands = shell_commands(page, "python -m toque.functions")
    assert len(commands) >= 2
    for words in commands:
        assert functions_main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_commands_without_a_platform_run(
    modules: None, here: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(FUNCTIONS, capsys).splitlines()[:2] == ["[1.0, 6.0]", "1"]


def test_what_was_submitted_is_worked_off(
    modules: None, here: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    identifier = json.loads(run_here(DURABLE, capsys).splitlines()[0])
    invocation = Invocation[str](identifier, here)
    assert (invocation.status(), invocation.result(0)) == ("succeeded", "receipt 7, shipped")


def test_hello_world_greets_as_its_comment_says(
    modules: None, here: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, greeting = re.findall(r"""toque run greet --json '(.+?)' +# (".+?")""", FUNCTIONS.text)[0]
    assert functions_main(["--module", "hello", "run", "greet", "--json", arguments]) == 0
    assert capsys.readouterr().out == f"{greeting}\n"


@pytest.mark.slow
def test_the_commands_of_a_platform_run(
    modules: None, asked: AskedPlatform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("texts")

    def ask(*words: str) -> str:
        assert [*words] in commands, "the page shows another command"
        assert toque_main([identifier if word == "ID" else word for word in words]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    commands, identifier = shell_commands(FUNCTIONS, "toque"), ""
    assert "embed" in ask("functions")
    assert json.loads(ask("run", "embed", "--json", '{"text": "a"}')) == [1.0, 6.0]
    identifier = ask("submit", "publish", "--json", '{"texts": ["a"]}', "--key", "monday").strip()
    invocation = f"/invocations/{identifier}"
    with_token = {"Authorization": f"Bearer {asked.token}"}
    until(lambda: _get(asked.url + invocation, with_token)["status"] == "waiting")
    ask("invocations", "signal", "ID", "approval")
    assert ask("invocations", "logs", "ID", "-f").count("embedded a\n") == 1
    assert _get(asked.url + invocation, with_token)["result"] == "approved: True"
    ask("invocations", "list", "--state", "dead")
    assert "publish" in ask("invocations", "costs", "--cpu-hour", "0.04")


def _get(url: str, headers: dict[str, str]) -> dict[str, object]:
    answered: dict[str, object] = httpx.get(url, headers=headers).json()
    return answered


def test_the_table_of_states_is_the_record_s() -> None:
    rows = re.findall(r"^\| ([a-z, ]+) \| ", DURABLE.text.partition("| state | means |")[2], re.MULTILINE)
    documented = {state for row in rows for state in row.split(", ")}
    assert documented >= set(Record.model_fields["status"].annotation.__args__)  # type: ignore[union-attr]
