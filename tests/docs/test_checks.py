"""The checks of the documentation refuse what is wrong; a check that cannot fail would be none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import CommandError, check, check_span, commands_of, module_commands
from tests.docs.pages import ROOT, Block, Page
from tests.docs.test_pages import check_imports

HERE = Page(ROOT / "README.md")


def words_of(text: str) -> list[list[str]]:
    return list(commands_of(Block("bash", text, 1, runs=True)))


@pytest.mark.parametrize(
    "command",
    [
        "toque models history late --limitt 3",
        "toque models history late --limi 3",
        "toque modles",
        "toque run no_such_function",
        "toque run drain_predictions --json '{\"n\": 1}'",
        "toque run drain_predictions --json '{'",
        "toque models policy late --set '{'",
        "make no-such-target",
        "make up PROJEKT=clinic",
        "python -m no.such.module",
        "python -m toque.functions run no_such_function",
        "python -m toque.functions --module absent run drain_predictions --json '[]'",
        "python -m pytest tests/no_such_test.py",
        "python no_such_file.py",
        "pip install -e '.[no-such-extra]'",
        "curl --no-such-flag http://127.0.0.1:8000/healthz",
        "curl http://127.0.0.1:8000/no/such/route",
        "curl -X DELETE http://127.0.0.1:8000/healthz",
        "curl -d '{\"n\": 1}' http://127.0.0.1:8000/functions/drain_predictions",
        "curl -d '{' http://127.0.0.1:8000/v2/models/late/infer",
        "curl somewhere",
        "ray job submitt -- python -m toque.functions list",
        "ray job submit --no-such-flag -- python -m toque.functions list",
        "ray job submit -- python -m toque.functions run no_such_function",
        "ray up clusters/no_such_file.yaml",
        "no-such-program",
        'eval "$(toque status --no-such-flag)"',
    ],
)
def test_a_wrong_command_is_refused(command: str) -> None:
    (words,) = words_of(command)
    with pytest.raises((CommandError, json.JSONDecodeError)):
        check(words, HERE)


@pytest.mark.parametrize(
    "command",
    [
        "toque models history late --limit 3",
        "TOQUE_PROJECT=examples.flights .venv/bin/toque run drain_predictions --json '{}'",
        "make up PROJECT=clinic",
        "curl -s -H 'Authorization: Bearer a' http://127.0.0.1:8000/v2/models/late/infer -d '{}'",
        "curl -X DELETE http://127.0.0.1:8000/invocations/0599",
        "ray job submit --working-dir . -- python -m toque.functions run drain_predictions --json '{}'",
        "ray up clusters/local.yaml",
    ],
)
def test_a_right_command_is_accepted(command: str) -> None:
    (words,) = words_of(command)
    check(words, HERE)


@pytest.mark.parametrize(
    "span",
    ["toque modles show", "toque models show --no-such-flag", "make no-such-target", "tests/no_such.py"],
)
def test_a_wrong_beginning_of_a_command_is_refused(span: str) -> None:
    with pytest.raises(CommandError):
        check_span(span)


def test_the_beginning_of_a_command_is_enough_in_running_text() -> None:
    check_span("toque rollout start")
    check_span("toque models promote late 4 --reason")


def test_a_block_of_shell_is_taken_apart() -> None:
    text = "a 'b\nc' \\\n  --d  # why\nexport E=f && g | h 2> i; j  # k"
    assert words_of(text) == [["a", "b\nc", "--d"], ["export", "E=f"], ["g"], ["h"], ["j"]]


@pytest.mark.parametrize("text", ["cat <<EOF\ntoque\nEOF", "echo 'open"])
def test_shell_that_hides_from_the_checks_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        words_of(text)


def test_arguments_of_a_module_are_parsed_and_nothing_runs() -> None:
    wrong_of = {
        ("toque.functions", "list", "--no-such-flag"): "unrecognized arguments",
        ("toque.functions", "work", "--until"): "unrecognized arguments",
        ("toque.functions", "work", "--until-idle"): None,
        ("toque.load.scenarios.run", "--no-such-flag"): "unrecognized arguments",
        ("toque.load.benchmarks.statistics.bounds", "--no-such-flag"): "unrecognized arguments",
        ("toque.load.benchmarks.prep.streams", "--events", "200000"): None,
        ("toque.load.scenarios.result",): "does nothing",
        ("examples.flights.demo", "--request", "900"): "unrecognized arguments",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.docs.module_parser"],
        input=json.dumps([*wrong_of]),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    messages = json.loads(ran.stdout.splitlines()[-1])
    for (command, wrong), message in zip(wrong_of.items(), messages, strict=True):
        assert message is None if wrong is None else wrong in message, (command, message)


def test_a_page_is_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# A `b`, c\n\n```python\n# d.py\n```\n\n<!-- imports only: a server -->\n```python\ne = 1\n```\n\n"
        "[f](page.md#a-b-c) [g](page.md#none) [h](absent.md) [i](https://j)\n\n    toque k\n"
    )
    page = Page(path)
    assert [(each.line, each.file_name, each.runs) for each in page.blocks] == [
        (4, "d.py", True),
        (9, None, False),
    ]
    assert page.broken_links() == ["page.md#none", "absent.md"]
    assert page.commands_outside_blocks


def test_a_fence_that_is_not_closed_is_an_error(tmp_path: Path) -> None:
    path = ROOT / "docs" / "README.md"
    page = Page(path)
    object.__setattr__(page, "text", "```bash\n")
    with pytest.raises(ValueError, match="not closed"):
        _ = page.blocks


@pytest.mark.parametrize(
    "code",
    [
        "from toque.functions import no_such_name",
        "import no_such_module",
        "from toque.functions.tuning import Limits\nLimits(days=1)",
        "1 +",
    ],
)
def test_code_that_is_not_run_is_still_checked(code: str) -> None:
    with pytest.raises((AssertionError, ImportError, SyntaxError)):
        check_imports(HERE, Block("python", code, 1, runs=False))


def test_right_code_that_is_not_run_is_accepted() -> None:
    check_imports(
        HERE, Block("python", "from toque.functions.tuning import Limits\nLimits(hours=1)", 1, runs=False)
    )


def test_what_the_demo_is_given_is_the_demo_s_to_parse(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```bash\nA=b toque demo -- --requests 900\nls\n```\n")
    assert module_commands(Page(path)) == [["examples.flights.demo", "--requests", "900"]]
