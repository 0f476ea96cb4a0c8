"""What docs/functions.md shows runs as it stands there."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from functions import Context, Invocation
from functions.__main__ import main
from functions.runtime import catalog
from functions.runtime.durable.invocation import run_pending
from functions.runtime.durable.record import Record

DOC = Path(__file__).parents[3] / "docs" / "functions.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, code in re.findall(r"```python\n# (\w+[.]py)\n(.*?)```", DOC.read_text(), re.DOTALL):
        (tmp_path / f"doc_{name}").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(catalog, "PLATFORM", ())
    monkeypatch.setattr(catalog, "_declared", {})
    monkeypatch.setenv("PANTRY_KEY", "sesame")
    yield "doc_kitchen"
    for name in ("doc_kitchen", "doc_hello"):
        sys.modules.pop(name, None)


def ask(capsys: pytest.CaptureFixture[str], *words: str, module: str = "doc_kitchen") -> str:
    assert main(["--module", module, *words]) == 0
    return capsys.readouterr().out


def test_hello_world_greets_as_it_says(
    used: Context, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, greeting = re.findall(r"""toque run greet --json '(.+?)' +# (".+?")""", DOC.read_text())[0]
    assert ask(capsys, "run", "greet", "--json", arguments, module="doc_hello") == f"{greeting}\n"


def test_the_first_example_runs_waits_logs_and_costs(
    used: Context, module: str, capsys: pytest.CaptureFixture[str], soon: Callable[..., None]
) -> None:
    assert json.loads(ask(capsys, "run", "embed", "--json", '{"text": "a"}')) == [1.0, 6.0]
    identifier = json.loads(ask(capsys, "submit", "publish", "--json", '{"texts": ["a", "b"]}'))
    invocation = Invocation[str](identifier, used)
    soon(lambda: run_pending(used) is not None and invocation.status() == "waiting")
    ask(capsys, "signal", identifier, "approval")
    assert invocation.result(60) == "approved: True"
    assert ask(capsys, "logs", identifier, "--follow") == "embedded a\nembedded b\n"
    progress: Any = invocation.progress()
    assert (progress.done, progress.total) == (2, 2)
    (total,) = json.loads(ask(capsys, "costs"))
    assert (total["function"], total["invocations"]) == ("publish", 1)


def test_its_table_of_states_is_the_record_s() -> None:
    rows = re.findall(r"^\| ([a-z, ]+) \| ", DOC.read_text().partition("| state | means |")[2], re.MULTILINE)
    told = {state for row in rows for state in row.split(", ")}
    assert told >= set(Record.model_fields["status"].annotation.__args__)  # type: ignore[union-attr]
