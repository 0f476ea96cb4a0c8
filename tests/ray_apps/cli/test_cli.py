"""The commands, against a gateway on a real port."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toque.functions.runtime.durable.invocation import run_pending
from toque.ray_apps.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as exited:  # argparse ends the process itself
        code = int(exited.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_function_is_called_and_its_result_printed(platform: Any, capsys: Any) -> None:
    assert run(capsys, "run", "cli_add", "--json", '{"a": 2}') == (0, "3\n", "")
    code, out, _ = run(capsys, "functions")
    assert code == 0
    assert "Add two numbers." in out


def test_arguments_come_from_a_file_too(platform: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "arguments.json"
    file.write_text('{"a": 40, "b": 2}')
    assert run(capsys, "run", "cli_add", "--json", f"@{file}")[:2] == (0, "42\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "cli_nonee"), 1, "no function 'cli_nonee'"),
        (("run", "cli_add", "--json", '{"a": "x"}'), 2, "a: "),
        (("run", "cli_add", "--json", "{"), 2, "this is not JSON"),
        (("run", "cli_add", "--json", "@/nowhere"), 2, "cannot read '/nowhere'"),
        (("run", "cli_break"), 1, "out of gas"),
        (("models", "show", "none"), 1, "there is no model 'none'; `toque models list` lists them"),
        (("models", "list", "--limit", "0"), 2, "'0' is not a whole number above 0"),
        (("traffic", "set", "late", "canary"), 2, "write NAME=VERSION:SHARE"),
        (("traffic", "set", "late", "--rule", "eu=5:country NL"), 2, "write NAME=VERSION:CONDITION"),
        (("predict", "late"), 2, "give either --json"),
        (("predict", "late", "--example"), 1, "there is no model 'late'"),
        (("predict", "late", "--entities", "[]", "--attribute", "NL"), 2, "write NAME=VALUE"),
        (("predict", "late", "--entities", "[]"), 1, "there is no model 'late'"),
        (("token", "revoke", "nobody"), 1, "there is no token 'nobody'; known: ada"),
    ],
)
def test_what_goes_wrong_is_told_on_standard_error_with_an_exit_code(
    platform: Any, capsys: Any, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, ""), err
    assert words in err
    assert err.count("\n") == 1, err


def test_a_durable_invocation_is_followed(platform: Any, capsys: Any) -> None:
    code, out, _ = run(capsys, "submit", "cli_add", "--json", '{"a": 1}', "--key", "k")
    assert code == 0
    invocation = out.strip()
    assert run(capsys, "run", "cli_add", "--json", '{"a": 1}', "--key", "k")[:2] == (0, "2\n")
    assert run(capsys, "submit", "cli_add", "--json", '{"a": 1}', "--key", "k", "--wait")[:2] == (0, "2\n")
    assert run(capsys, "submit", "cli_add", "--json", '{"a": 9}', "--key", "k")[0] == 1
    shown = json.loads(run(capsys, "invocations", "show", invocation, "--json")[1])
    assert (shown["status"], shown["caller"]) == ("succeeded", "ada")
    assert invocation in run(capsys, "invocations", "list")[1]
    assert run(capsys, "invocations", "redrive", invocation)[0] == 1


def test_what_an_invocation_said_is_shown_and_followed_to_its_end(platform: Any, capsys: Any) -> None:
    arguments = ("cli_talk", "--json", '{"words": ["[one]", "two"]}', "--key", "k")
    assert run(capsys, "run", *arguments)[:2] == (0, "2\n")
    invocation = run(capsys, "submit", *arguments)[1].strip()
    assert run(capsys, "logs", invocation)[:2] == (0, "[one]\ntwo\n")
    assert run(capsys, "logs", invocation, "-f")[:2] == (0, "[one]\ntwo\n")
    assert "cli_talk stdout: two" in run(capsys, "logs", invocation, "--times")[1]
    assert run(capsys, "run", "cli_break", "--key", "b")[0] == 1
    broken = run(capsys, "submit", "cli_break", "--key", "b")[1].strip()
    code, out, err = run(capsys, "logs", broken, "--follow")
    assert (code, "in cli_break" in out, "RuntimeError: out of gas" in err) == (1, True, True)
    assert run(capsys, "logs", "nothing")[0] == 1


def test_the_dead_are_listed_and_purged(platform: Any, capsys: Any) -> None:
    run(capsys, "run", "cli_break", "--key", "b")
    broken = run(capsys, "submit", "cli_break", "--key", "b")[1].strip()
    run_pending(platform.context)  # whoever attends enters it into the index
    assert broken in run(capsys, "invocations", "list", "--state", "dead")[1]
    assert run(capsys, "invocations", "purge", broken)[:2] == (0, "purged\n")
    assert broken not in run(capsys, "invocations", "list", "--state", "dead")[1]
    code, _, err = run(capsys, "invocations", "purge", broken)
    assert (code, "not among the dead letters" in err) == (1, True)
    assert run(capsys, "invocations", "purge", "nothing")[0] == 1


def test_costs_are_the_sum_of_the_receipts(platform: Any, capsys: Any, monkeypatch: Any) -> None:
    receipts = []
    for number in range(3):
        arguments = ("cli_add", "--json", json.dumps({"a": number}), "--key", f"k{number}")
        run(capsys, "run", *arguments)
        invocation = run(capsys, "submit", *arguments)[1].strip()
        receipts.append(json.loads(run(capsys, "invocations", "show", invocation, "--json")[1])["receipt"])
    (row,) = json.loads(run(capsys, "costs", "--cpu-hour", "3600", "--json")[1])
    assert (row["function"], row["caller"], row["invocations"], row["attempts"]) == ("cli_add", "ada", 3, 3)
    assert row["day"] in {each["finished_at"][:10] for each in receipts}
    for name in ("queue_s", "run_s", "cpu_s", "gpu_s"):
        assert row[name] == pytest.approx(sum(each[name] for each in receipts)), name
    assert row["money"] == pytest.approx(row["cpu_s"])
    assert "cli_add" in run(capsys, "costs")[1]
    monkeypatch.setenv("TOQUE_PRICES", '{"currency": "EUR", "cpu_hour": 7200, "gpu_hour": 1}')
    (priced,) = json.loads(run(capsys, "costs", "--json")[1])
    assert priced["money"] == pytest.approx(2 * priced["cpu_s"])
    assert "EUR" in run(capsys, "costs")[1]
    (said,) = json.loads(run(capsys, "costs", "--cpu-hour", "3600", "--json")[1])
    assert said["money"] == pytest.approx(said["cpu_s"])
    assert row["store_reads"] == sum(each["store_reads"] for each in receipts)
    assert row["store_writes"] == 6  # each run's claim and outcome
    per_request = (
        '{"currency": "EUR", "cpu_hour": 0, "gpu_hour": 0, "store_reads_1000": 2, "store_writes_1000": 30}'
    )
    monkeypatch.setenv("TOQUE_PRICES", per_request)
    (asked,) = json.loads(run(capsys, "costs", "--json")[1])
    assert asked["money"] == pytest.approx(0.002 * row["store_reads"] + 0.03 * row["store_writes"])
    monkeypatch.setenv("TOQUE_PRICES", '{"currency": "EUR"}')
    code, _, complaint = run(capsys, "costs")
    assert code == 2
    assert "cpu_hour is missing, not a price of 0 or more" in complaint


def test_a_model_is_promoted_split_and_rolled_back(platform: Any, model: str, capsys: Any) -> None:
    assert run(capsys, "models", "approve", model, "1", "--comment", "fine")[:2] == (0, "late@1: approved\n")
    for version in ("1", "2"):
        assert run(capsys, "models", "promote", model, version)[0] == 0
    code, out, err = run(capsys, "traffic", "set", model, "canary=3:0.1", "--shadow", "1")
    assert code == 0, err
    assert "10.00%" in out
    assert run(capsys, "traffic", "show", model)[1] == out
    rules = (
        "--rule",
        "eu=canary:country in NL, BE and app>=4",
        "--rule",
        "in-house=champion:team prefix eng",
    )
    code, out, err = run(capsys, "traffic", "set", model, "canary=3:0.1", *rules)
    assert code == 0, err
    assert "rule\teu\t3\t\tcountry in NL,BE and app >= 4\n" in out
    assert "rule\tin-house\tchampion\t\tteam prefix eng\n" in out
    assert run(capsys, "traffic", "show", model)[1] == out
    assert run(capsys, "traffic", "rollback", model)[1] == "late@1 is the champion again\n"
    listed = run(capsys, "models", "list")[1]
    assert "champion=1" in listed
    assert "ada" in run(capsys, "models", "history", model)[1]
    assert "READY" in run(capsys, "models", "show", model)[1]


def test_tokens_are_made_listed_and_revoked(
    platform: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "token", "create", "bob", "viewer")
    assert code == 0
    assert "bob" in run(capsys, "token", "list")[1]
    monkeypatch.setenv("TOQUE_TOKEN", out.strip())
    assert run(capsys, "models", "list")[0] == 0
    code, _, err = run(capsys, "run", "cli_add", "--json", '{"a": 1}')
    assert (code, "this needs operator" in err) == (1, True)


def test_without_a_platform_commands_say_how_to_start_one(home: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "--home", str(home), "models", "list")
    assert (code, "`toque up` starts it" in err) == (1, True)
    code, out, err = run(capsys, "--home", str(home), "status")
    assert (code, out, "nothing runs in" in err) == (1, "", True)
    assert run(capsys, "--home", str(home), "down")[:2] == (0, "nothing was running\n")


def test_a_platform_that_is_gone_is_told(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TOQUE_TOKEN", "tq_a_b")
    code, _, err = run(capsys, "--home", str(home), "models", "list")
    assert (code, "nothing answers at http://127.0.0.1:9" in err) == (1, True)


def test_the_demo_of_the_project_is_run_with_its_arguments_and_exit_code(
    project: Path, home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOQUE_PROJECT", "before")  # so that it is put back afterwards
    monkeypatch.setenv("TOQUE_HOME", "before")
    (project / "demo.py").write_text(
        "import os, sys\nprint(os.environ['TOQUE_PROJECT'], sys.argv[1:])\nsys.exit(3)\n"
    )
    arguments = ("--home", str(home), "demo", "--project", "kitchen", "--", "--fast")
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (3, "kitchen ['--fast']\n")


def test_a_project_is_found_where_one_stands_and_what_is_not_there_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    code = "from toque.functions import function\n\n\n@function\ndef greet(name: str) -> str:\n    return f'hello {name}'\n"
    (tmp_path / "hello.py").write_text(code)
    toque = Path(sys.executable).with_name("toque")  # as installed: Python does not look here by itself
    words = {
        "here": ["run", "greet", "--here", "--json", '{"name": "Ada"}'],
        "up": ["up", "--project", "hullo"],
    }
    environment = os.environ | {"TOQUE_PROJECT": "hello"}
    ended = {
        name: subprocess.run(
            [toque, *each], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        for name, each in words.items()
    }
    assert (ended["here"].returncode, ended["here"].stdout) == (0, '"hello Ada"\n'), ended["here"].stderr
    assert (ended["up"].returncode, ended["up"].stdout) == (2, "")
    assert "no module 'hullo' in" in ended["up"].stderr


def test_a_project_without_a_demo_is_told(project: Path, home: Path, capsys: Any) -> None:
    assert "no module 'kitchen.demo' in" in run(capsys, "demo", "--project", "kitchen")[2]
    assert "no module 'larder.demo' can be imported" in run(capsys, "demo", "--project", "larder")[2]
    code, _, err = run(capsys, "demo")
    assert (code, "TOQUE_PROJECT" in err) == (2, True)


@pytest.mark.parametrize("words", [("train",), ("demo",), ("run", "cook", "--here")], ids=" ".join)
@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("FEATURES = [\n", "__init__.py, line 1: SyntaxError"),
        ("import json\nimport kitc\n", "__init__.py, line 2: ModuleNotFoundError"),
        ("1 / 0\n", "__init__.py, line 1: ZeroDivisionError"),
    ],
)
def test_a_project_that_cannot_be_imported_is_one_line(
    words: tuple[str, ...], code: str, where: str, project: Path, home: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TOQUE_PROJECT", "kitchen")
    monkeypatch.setenv("TOQUE_STORE", f"file://{home}/store")
    (project / "__init__.py").write_text(code)
    ended, out, err = run(capsys, "--home", str(home), *words)
    assert (ended, out) == (1, "")
    assert len(err.splitlines()) == 1, err
    assert f"{project}/{where}" in err


@pytest.mark.parametrize("code", ["import kitc\n", "def (\n"], ids=["import", "syntax"])
def test_a_demo_that_cannot_be_imported_is_one_line(
    code: str, project: Path, home: Path, capsys: Any
) -> None:
    (project / "demo.py").write_text(code)
    ended, _, err = run(capsys, "--home", str(home), "demo", "--project", "kitchen")
    assert ended == 1
    assert len(err.splitlines()) == 1, err
    assert f"{project}/demo.py, line 1" in err
