import json
import sys
from pathlib import Path
from typing import Any

import pytest

from toque.functions.__main__ import main
from toque.functions.runtime import catalog, context


@pytest.fixture(autouse=True)
def _here(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PLATFORM", ())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import sample_functions  # noqa: F401


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main(["--module", "sample_functions", *words]) == code
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else err


def test_run_prints_the_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = json.dumps({"path": str(tmp_path / "t"), "word": "x"})
    assert ask(capsys, "run", "append_word", "--json", arguments) == "x"


def test_invalid_arguments_are_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert "path: required" in ask(capsys, "run", "append_word", code=2)
    assert "--json cannot be read" in ask(capsys, "run", "append_word", "--json", "{", code=2)


def test_an_unknown_name_is_exit_code_one_and_suggests_a_known_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no function 'append_wrd'; did you mean 'append_word'?" in ask(capsys, "run", "append_wrd", code=1)
    assert "no function 'zzz'; `python -m toque.functions list`" in ask(capsys, "submit", "zzz", code=1)
    arguments = json.dumps({"path": str(tmp_path / "t"), "word": "x"})
    identifier = ask(capsys, "submit", "append_word", "--json", arguments)
    for command in ("show", "cancel", "redrive", "purge", "logs"):
        assert f"did you mean '{identifier}'?" in ask(capsys, command, identifier[:-1], code=1), command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("invocations", "--status", "daed"), "invalid choice: 'daed'"),
        (("invocations", "--limit", "0"), "'0' is not a number above 0"),
        (("rnu",), "invalid choice: 'rnu'"),
    ],
)
def test_a_wrong_command_line_is_a_json_error_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(list(words))
    problem = json.loads(capsys.readouterr().err)["error"]
    assert (exited.value.code, problem["exit_code"]) == (2, 2)
    assert says in problem["message"]


def test_an_unknown_invocation_within_a_function_keeps_its_own_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "no invocation 'gone'" in ask(capsys, "run", "read_gone", code=1)


def test_the_newest_invocations_come_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = json.dumps({"path": str(tmp_path / "t"), "word": "x"})
    submitted = [
        ask(capsys, "submit", "append_word", "--json", arguments, "--key", f"k{n}") for n in range(4)
    ]
    assert [each["id"] for each in ask(capsys, "invocations", "--limit", "2")] == submitted[:1:-1]


def test_an_error_of_the_function_is_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = json.dumps({"path": "/", "word": "x"})
    assert "IsADirectoryError" in ask(capsys, "run", "append_word", "--json", arguments, code=1)


def test_submit_wait_show_cancel_redrive(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = json.dumps({"path": str(tmp_path / "t"), "word": "x"})
    identifier = ask(capsys, "submit", "append_word", "--json", arguments, "--key", "k")
    assert ask(capsys, "show", identifier)["status"] == "queued"
    assert ask(capsys, "cancel", identifier) == "cancelled"
    assert ask(capsys, "redrive", identifier) == "queued"
    assert ask(capsys, "submit", "append_word", "--json", arguments, "--key", "k", "--wait") == "x"
    shown = ask(capsys, "show", identifier)
    assert (shown["result"], shown["arguments"]["word"]) == ("x", "x")
    assert [each["id"] for each in ask(capsys, "invocations")] == [identifier]
    (total,) = ask(capsys, "costs")
    assert (total["function"], total["caller"], total["invocations"]) == ("append_word", "ada", 1)


def test_list_and_show_describe_functions(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"name": "append_word", "doc": "Append a word to a file."} in ask(capsys, "list")
    assert ask(capsys, "show", "append_word")["input_schema"]["required"] == ["path", "word"]


def test_modules_are_found_on_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sample_functions" in sys.modules
    assert context().actor == "ada"
