"""Every page of the documentation: its code runs, its commands are understood, its links lead somewhere."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.commands import CommandError, check, check_span, commands_of, module_commands
from tests.docs.pages import LANGUAGES, ROOT, Block, Page, all_pages
from toque.functions import Context, use_context
from toque.functions.runtime import catalog
from toque.registry import open_store

PAGES = all_pages()
MOST_WORDS = 2_000
LONG = {
    "docs/benchmarks.md",
    "docs/experiments.md",
    "docs/metrics.md",
}  # tables and a log; everything else answers one question
REFERENCE = "docs/reference/"  # written from the code
RUN_ELSEWHERE = {
    "docs/mlflow.md": "test_mlflow.py",
    "docs/testing-many-machines.md": "../cluster/test_lab.py",
}  # pages whose Python needs more than a store, and their test

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(page, block, id=f"{page.name}:{block.line}")
        for page in PAGES
        for block in page.blocks
        if block.language in languages
    ]


@each_page
def test_a_page_can_be_read_in_one_sitting(page: Page) -> None:
    assert page.name in LONG or page.name.startswith(REFERENCE) or page.words <= MOST_WORDS


@each_page
def test_links_lead_to_a_page_and_a_heading(page: Page) -> None:
    assert not page.broken_links()


@each_page
def test_blocks_say_their_language(page: Page) -> None:
    assert {block.language for block in page.blocks} <= LANGUAGES
    assert not page.commands_outside_blocks


@each_page
def test_inline_commands_and_files_exist(page: Page) -> None:
    wrong = []
    for span in page.spans:
        try:
            check_span(span)
        except CommandError as error:
            wrong.append(str(error))
    assert not wrong


@pytest.mark.parametrize(("page", "block"), blocks("bash"))
def test_commands_are_understood(page: Page, block: Block) -> None:
    wrong = []
    commands = list(commands_of(block))
    assert commands
    for words in commands:
        try:
            check(words, page)
        except CommandError as error:
            wrong.append(f"{' '.join(words)}: {error}")
    assert not wrong


def test_modules_understand_their_arguments() -> None:
    asked = [(page, words) for page in PAGES for words in module_commands(page)]
    assert asked
    ran = subprocess.run(
        [sys.executable, "-m", "tests.docs.module_parser"],
        input=json.dumps([words for _, words in asked]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    messages = json.loads(ran.stdout.splitlines()[-1])
    assert not [
        f"{page.name}: python -m {' '.join(words)}: {wrong}"
        for (page, words), wrong in zip(asked, messages, strict=True)
        if wrong
    ]


@pytest.mark.parametrize(("page", "block"), blocks("json", "yaml"))
def test_data_can_be_read(page: Page, block: Block) -> None:
    read = json.loads if block.language == "json" else yaml.safe_load
    assert read(block.text) is not None


@pytest.fixture
def place(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with a store and a Redis, whose modules can be imported and are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        catalog, "_declared", {name: dict(named) for name, named in catalog._declared.items()}
    )
    modules = set(sys.modules)
    url = (tmp_path / "store").as_uri()
    with use_context(Context(store=open_store(url), store_url=url, redis_url=redis_url)):
        yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


CODE = [page for page in PAGES if any(block.language == "python" for block in page.blocks)]


@pytest.mark.parametrize("page", CODE, ids=[page.name for page in CODE])
def test_the_code_of_a_page_runs_in_order(page: Page, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in RUN_ELSEWHERE:
        assert page.path.name in (Path(__file__).parent / RUN_ELSEWHERE[page.name]).read_text()
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in page.blocks:
        if block.language != "python":
            continue
        if page.name in RUN_ELSEWHERE or not block.runs:
            check_imports(page, block)
        elif block.file_name is not None:
            (place / block.file_name).write_text(block.text)
            names |= vars(importlib.import_module(block.file_name.removesuffix(".py")))
        else:  # the empty lines make a traceback name the page's own line
            exec(compile("\n" * (block.line - 1) + block.text, page.name, "exec"), names)  # noqa: S102 - our own pages


def check_imports(page: Page, block: Block) -> None:
    """A block that needs a running platform: it compiles, what it imports is there, and takes the keywords it is given."""
    tree, found = ast.parse(block.text, page.name), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), (
                    f"{page.name}:{block.line}: {node.module} has no {alias.name}"
                )
                found[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in found:
            parameters = inspect.signature(found[node.func.id]).parameters.values()
            unknown = {each.arg for each in node.keywords} - {each.name for each in parameters}
            open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
            assert open_ended or not unknown, f"{page.name}:{block.line}: {node.func.id} takes no {unknown}"


def test_the_map_and_the_readme_lead_to_every_page() -> None:
    page = Page(ROOT / "docs" / "README.md")
    linked = {(page.path.parent / link.partition("#")[0]).resolve() for link in page.links}
    pages = {path for path in (ROOT / "docs").glob("*.md") if path != page.path}
    assert not sorted(path.name for path in pages - linked)
    assert "docs/README.md" in (ROOT / "README.md").read_text()
