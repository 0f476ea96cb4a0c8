"""The set of commands as a user meets it: help, formats, unknown names, order and limit, start-up."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toque.functions.alerting.jobs
import toque.functions.features.jobs
import toque.functions.monitoring
import toque.functions.monitoring.language.jobs
import toque.functions.reporting
import toque.functions.rollout  # noqa: F401  # these declare what the commands call
from toque.ray_apps.cli import main
from toque.ray_apps.cli.client import Client, _running
from toque.ray_apps.cli.main import GROUPS, parser
from toque.ray_apps.local.settings import Ports, Settings
from toque.ray_apps.local.state_file import FILE, RunningPlatform

# httpx itself imports rich where that is installed, for a command line of its own.
HEAVY = (
    "ray", "torch", "pandas", "polars", "pyarrow", "numpy", "deltalake", "redis", "toque.registry", "toque.functions",
)  # fmt: skip
FUNCTION_JSON = {"run", "submit", "predict", "invocations signal"}  # there --json carries arguments


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as exited:  # argparse ends the process itself
        code = int(exited.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def leaves(made: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that runs something, by its words."""
    groups = [each for each in made._actions if isinstance(each, argparse._SubParsersAction)]
    if not groups:
        yield name, made
    for each in groups:
        for word, below in each.choices.items():
            yield from leaves(below, f"{name} {word}".strip())


COMMANDS = dict(leaves(parser()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_every_command_is_described(name: str) -> None:
    made = COMMANDS[name]
    assert made.description is not None
    assert made.description.endswith(".")
    missing = [each.dest for each in made._actions if not each.help or len(each.help.split()) < 2]
    assert missing == []
    made.format_help()  # a stray % in a help text would fail here


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_when_asked(name: str) -> None:
    options = {option: each for each in COMMANDS[name]._actions for option in each.option_strings}
    assert {"-o", "--output"} <= options.keys()
    assert (options["--json"].dest == "output") == (name not in FUNCTION_JSON)


def test_the_help_shows_every_command_once_in_a_line_of_its_group(capsys: Any) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in {each.split()[0] for each in COMMANDS}:
        assert len(re.findall(rf"^  {name} +\S.*$", out, re.MULTILINE)) == 1, name
    assert [each for each in GROUPS if f"\n{each}:\n" not in out] == []
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("modles", "list"), "there is no 'modles'; did you mean 'models'?"),
        (("models", "lst"), "there is no 'lst'; did you mean 'list'?"),
        (("models", "list", "-o", "yaml"), "there is no 'yaml'; choose from table, wide, tsv, json"),
        (
            ("models", "show"),
            "toque models show: the following arguments are required: model; `toque models show --help`",
        ),
    ],
)
def test_a_command_line_that_cannot_be_is_exit_code_two_and_one_line(
    arguments: tuple[str, ...], words: str, capsys: Any
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


MODEL_COMMANDS = [
    "models show {}",
    "models history {}",
    "models approve {} 1",
    "models reject {} 1",
    "models promote {} 1",
    "models download {} 1",
    "models card {} 1",
    "models policy {}",
    "models policy {} --set {{}}",
    "models audit {}",
    "traffic show {}",
    "traffic set {} canary=1:0.1",
    "traffic rollback {}",
    "traffic holdout {} q4 0.1",
    "traffic end-holdout {} q4",
    "rollout status {}",
    "rollout status {} -f",
    "rollout tick {}",
    "rollout start {} 1",
    "rollout plan {} 1",
    "rollout page {}",
    "rollout explain {} 1",
    "rollout pause {} --reason r",
    "rollout resume {} --reason r",
    "rollout promote {} --reason r",
    "rollout abort {} --reason r",
    "rollout end {} promote --reason r",
    "monitors {}",
    "scores {}",
    "incidents {}",
    "why {}",
    "drift {}",
    "alerts status {}",
    "alerts ack {} drift/wind",
    "alerts silence {} drift --hours 1 --reason r",
    "predict {} --entities []",
]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_an_unknown_model_is_exit_code_one_and_a_known_one_is_suggested(
    platform: Any, model: str, command: str, capsys: Any
) -> None:
    code, out, err = run(capsys, *command.format("latte").split())
    assert (code, out) == (1, "")
    assert err == "there is no model 'latte'; did you mean 'late'? `toque models list` lists them\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "models approve late 9",
            "there is no version '9' of late; known: 1, 2, 3, champion; `toque models show late`",
        ),
        ("models promote late 9", "there is no version '9' of late"),
        ("models card late champoin", "there is no version 'champoin' of late; did you mean 'champion'?"),
        ("models download late 9", "there is no version '9' of late"),
        ("traffic set late canary=9:0.1", "there is no version '9' of late"),
        ("traffic set late --shadow 9", "there is no version '9' of late"),
        ("traffic end-holdout late q4", "there is no holdout 'q4' of late"),
        ("traffic layer trips", "there is no layer 'trips'"),
        ("rollout start late 9", "there is no version '9' of late"),
        ("rollout start late 2 --rivals 9", "there is no version '9' of late"),
        ("rollout plan late 9", "there is no version '9' of late"),
        ("why late --alarm late/drift/wind/1", "there is no alarm 'late/drift/wind/1' of late"),
        ("functions cli_ad", "there is no function 'cli_ad'; did you mean 'cli_add'? `toque functions`"),
        ("run cli_ad", "there is no function 'cli_ad'; did you mean 'cli_add'?"),
        ("submit cli_ad", "there is no function 'cli_ad'; did you mean 'cli_add'?"),
        ("runs list lat", "there is no experiment 'lat'"),
        ("runs show 1", "there is no run '1'"),
        ("runs upload 1 clusters", "there is no run '1'"),
        ("runs download 1", "there is no run '1'"),
        ("invocations show 1", "there is no invocation '1'; `toque invocations list`"),
        ("invocations cancel 1", "there is no invocation '1'"),
        ("invocations signal 1 approval", "there is no invocation '1'"),
        ("logs 1", "there is no invocation '1'"),
        ("logs 1 -f", "there is no invocation '1'"),
        ("token revoke adda", "there is no token 'adda'; did you mean 'ada'? `toque access token list`"),
        ("features wether", "there is no feature view 'wether'"),
    ],
)
def test_any_other_unknown_name_is_exit_code_one_too(
    platform: Any, model: str, command: str, words: str, capsys: Any
) -> None:
    platform.registry.set_alias(model, "champion", 1)
    code, out, err = run(capsys, *command.split())
    assert (code, out) == (1, ""), err
    assert words in err
    assert err.count("\n") == 1


def test_functions_are_listed_with_their_arguments(platform: Any, capsys: Any) -> None:
    _, out, _ = run(capsys, "functions")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}
    assert rows["function"] == ["arguments", "what it does"]
    assert rows["cli_add"] == ["a, [b]", "Add two numbers."]
    assert rows["cli_talk"] == ["words", "Say some words."]
    assert rows["cli_break"] == ["", "Fail."]
    assert "\twords: list of string\t" in run(capsys, "functions", "-o", "wide")[1]
    _, out, _ = run(capsys, "functions", "cli_add")
    assert out == "argument\ttype\tdefault\tmeaning\na\tinteger\t\tThe first number.\nb\tinteger\t1\t\n"
    whole = json.loads(run(capsys, "functions", "cli_add", "-o", "json")[1])
    assert whole["output_schema"] == {"type": "integer"}


def test_invocations_come_newest_first_with_a_limit(
    platform: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = [
        run(capsys, "submit", "cli_add", "--json", json.dumps({"a": n}))[1].strip() for n in range(5)
    ]
    code, out, err = run(capsys, "invocations", "list", "--limit", "3")
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["ID", *submitted[:1:-1]]
    assert err == "the first 3 are shown and there are more; --limit 6 shows further ones\n"
    _, out, err = run(capsys, "invocations", "list", "--limit", "5", "--json")
    assert ([each["id"] for each in json.loads(out)], err) == (submitted[::-1], "")
    for width in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        _, out, _ = run(capsys, "invocations", "list", "-o", "table")
        assert set(submitted) <= set(out.split()), width


def test_versions_and_changes_of_a_model_come_newest_first(platform: Any, model: str, capsys: Any) -> None:
    _, out, err = run(capsys, "models", "show", model, "--limit", "2")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["version", "3", "2"]
    assert "there are more" in err
    _, out, _ = run(capsys, "models", "history", model, "--limit", "2")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["entry", "3", "2"]
    assert [line.split("\t")[4] for line in out.splitlines()] == ["version", "3", "2"]


def test_a_date_stays_on_a_line(platform: Any, model: str, capsys: Any, monkeypatch: Any) -> None:
    created = platform.registry.get_version(model, 1).created_at
    for width in (40, 80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        _, out, _ = run(capsys, "models", "show", model, "-o", "table")
        assert f"{created:%Y-%m-%d %H:%M}" in out


def test_nothing_there_is_said_on_standard_error_and_tsv_keeps_its_header(platform: Any, capsys: Any) -> None:
    assert run(capsys, "models", "list") == (
        0,
        "model\tversions\taliases\tcreated\tdescription\n",
        "there are no models\n",
    )
    assert run(capsys, "models", "list", "--json") == (0, "[]\n", "")
    assert run(capsys, "invocations", "list", "--state", "dead", "-o", "table") == (
        0,
        "",
        "there is no invocation in the state dead\n",
    )


def test_no_listing_shows_a_name_of_our_code_or_a_python_value(
    platform: Any, model: str, capsys: Any
) -> None:
    invocation = run(capsys, "submit", "cli_add", "--json", '{"a": 1}')[1].strip()
    platform.registry.set_alias(model, "champion", 1)
    for command in (
        "models list",
        "models show late",
        "models history late",
        "models policy late",
        "traffic show late",
        "rollout status late",
        "monitors late",
        "scores late",
        "incidents late",
        "alerts status late",
        "functions cli_add",
        "invocations list",
        f"invocations show {invocation}",
        "token list",
        "experiments",
        "costs",
    ):
        for how in ("table", "wide", "tsv"):
            code, out, err = run(capsys, *command.split(), "-o", how)
            assert code == 0, err
            assert not re.search(r"\b(None|True|False)\b|model_dump|object at 0x|datetime\.", out + err), (
                command
            )


def test_a_model_without_a_champion_is_told_how_to_get_one(platform: Any, model: str, capsys: Any) -> None:
    for command in ("traffic show late", "traffic set late a=2:0.1"):
        code, out, err = run(capsys, *command.split())
        assert (code, out) == (1, "")
        assert err == "late has no champion yet; `toque models promote late VERSION` makes one\n"


def test_what_a_function_behind_a_command_refuses_is_said_in_its_own_words(
    platform: Any, model: str, capsys: Any
) -> None:
    platform.registry.set_alias(model, "champion", 1)
    code, out, err = run(capsys, "drift", model)
    assert (code, out) == (1, "")
    assert err.startswith("late@1 names no columns in its signature")


def test_the_client_finds_what_up_left_in_the_state_folder(home: Path) -> None:
    home.mkdir()
    settings = Settings(home=home, host="127.0.0.1")
    settings.token_file.write_text("tq_1_2\n")
    running = RunningPlatform(
        settings=settings, boot="b", ports=Ports(http=8123), redis_url="redis://", run_folder=home
    ).save()
    assert (home / FILE).exists()
    assert _running(home) == (running.url, running.token())


PLAIN = (
    "models list", "models show late", "functions", "invocations list", "costs", "rollout status late", "monitors late", "scores late",
    'run cli_add --json {"a":1}', "experiments", "token list",
)  # fmt: skip


def test_a_plain_command_imports_nothing_heavy(platform: Any, model: str) -> None:
    """The platform's address and token are in the environment; a second process is the user's own."""
    program = (
        "import sys\n"
        "from toque.ray_apps.cli.main import main\n"
        f"for words in {PLAIN}:\n"
        "    assert main(words.split()) == 0, words\n"
        f"print([each for each in {HEAVY} if each in sys.modules], file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "[]"


def test_building_the_parser_imports_not_even_the_http_client() -> None:
    program = (
        "import sys; from toque.ray_apps.cli.main import parser; parser().format_help(); "
        f"sys.exit([each for each in {(*HEAVY, 'httpx', 'pydantic', 'rich')} if each in sys.modules] != [])"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_transfer_of_a_name_with_odd_characters_is_an_unknown_name(platform: Any, capsys: Any) -> None:
    code, _, err = run(capsys, "models", "show", "no such model")
    assert (code, "there is no model 'no such model'" in err) == (1, True)


def test_a_client_asks_in_the_name_of_its_token(platform: Any) -> None:
    assert Client(platform.url, platform.token).get("/models") == []
