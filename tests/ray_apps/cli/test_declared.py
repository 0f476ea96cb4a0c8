"""Commands that functions declare, against a gateway on a real port."""

import json
import re
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from tests.project.command_table import table
from toque.functions.runtime.declaration.command import FORMS, View
from toque.functions.runtime.errors import DeclarationError
from toque.functions.runtime.function import function
from toque.ray_apps.cli.declared import TABLE
from toque.ray_apps.cli.main import MOVED, main, now_called, parser
from toque.ray_apps.cli.output import _FORMS


class Dish(BaseModel):
    name: str
    minutes: float
    by: str | None = None


@function(
    http=True,
    command=("cook dishes KITCHEN", "cook fish KITCHEN kind=fish"),
    view=View(columns="dish: name | minutes", wide="by", empty="{kitchen} cooks no {kind}"),
)
def cli_dishes(
    kitchen: Annotated[str, Field(description="Name of the kitchen.")],
    kind: str = "soup",
    most: Annotated[int | None, Field(description="How many at most.")] = None,
    tags: list[str] = [],  # noqa: B006  # as a schema shows it
    quick: bool = False,  # noqa: FBT001, FBT002  # as a schema shows it
) -> list[Dish]:
    """List the dishes of a kitchen. Raises: nothing."""
    if kind == "soup":
        return []
    return [
        Dish(name=f"{kind} {number}", minutes=number + (0 if quick else 0.5), by=",".join(tags))
        for number in range(most or 2)
    ]


@function(http=True, command=("serve COMMAND", "models serve COMMAND", "models list COMMAND"))
def cli_serve(
    command: str, workspace: str = "kitchen", output: dict[str, int] | None = None
) -> dict[str, object]:
    """Serve what the command line itself has words for."""
    return {"command": command, "workspace": workspace, "output": output}


@function(http=True, command="weigh X")
def cli_weigh(
    x: Annotated[float, Field(description="Weight, in grams.")],
    n: Annotated[int, Field(description="Number of pieces, 100 % of them.")] = 3,
    tags: Annotated[list[str], Field(description="Words that describe it.")] = [],  # noqa: B006  # as above
    sizes: Annotated[list[float] | None, Field(description="Sizes, in cm.")] = None,
    by: Annotated[dict[str, float] | None, Field(description="Weights by part.")] = None,
) -> dict[str, object]:
    """Weigh something."""
    return {"x": x, "n": n, "tags": tags, "sizes": sizes, "by": by}


class Oven(BaseModel):
    burnt: int = 0
    smoke: list[str] = []


@function(
    http=True,
    command="oven check TIMES",
    view=View(facts="burnt", failure="smoke: {times} times: smoke from {smoke} | burnt"),
)
def cli_oven(times: int, burnt: int = 0, smoke: list[str] = []) -> Oven:  # noqa: B006  # as a schema shows it
    """Look into the oven."""
    return Oven(burnt=burnt, smoke=smoke)


@function(
    http=True,
    command="oven shelf list",
    view=View(columns="shelf", empty="there is no shelf[ of {kind}][ at {height} cm]"),
)
def cli_shelves(limit: int = 7, kind: str | None = None, height: int | None = None) -> list[dict[str, int]]:
    """List the shelves, as many as the function's own limit says."""
    return [] if kind or height else [{"shelf": number} for number in range(limit)]


@function(http=True)
def cli_dish(name: str, minutes: float = 3.0) -> Dish:
    """Make a dish."""
    return Dish(name=name, minutes=minutes)


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    try:
        code = main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_table_is_that_of_the_functions() -> None:
    assert TABLE.read_text() == table(), "python -m tests.project.command_table writes it anew"


def test_help_fits_a_screen(capsys: Any) -> None:
    _, out, _ = run(capsys, "--help")
    words = re.findall(r"^  ([a-z][a-z-]+)  ", out, re.MULTILINE)
    assert words == list(parser().commands.choices)
    assert len(words) <= 31
    assert len(out.splitlines()) <= 55


@pytest.mark.parametrize("before", MOVED, ids=" ".join)
def test_a_command_of_before_is_another_name_of_one_of_now(before: tuple[str, ...], capsys: Any) -> None:
    made = parser()
    words = now_called([*before, "--help"], made.commands)
    with pytest.raises(SystemExit) as ended:
        made.parse_args(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: toque {' '.join(MOVED[before])}")


def test_a_command_of_a_project_is_found_by_its_words(platform: Any, capsys: Any) -> None:
    code, out, err = run(
        capsys, "cook", "fish", "ours", "--most", "1", "--tags", "a", "b", "--quick", "-o", "wide"
    )
    assert (code, out) == (0, "dish\tminutes\tby\nfish 0\t0.0\ta,b\n"), err
    code, out, _ = run(capsys, "cook", "dishes", "ours", "--kind", "cake", "-o", "json")
    assert [dish["name"] for dish in json.loads(out)] == ["cake 0", "cake 1"]
    assert run(capsys, "cook", "dishes", "ours") == (0, "dish\tminutes\n", "ours cooks no soup\n")
    assert "Name of the kitchen" in run(capsys, "cook", "dishes", "--help")[1]
    code, _, err = run(capsys, "cook", "fish", "ours", "--most", "x")
    assert code == 2
    assert "invalid int value: 'x'" in err
    assert run(capsys, "bake")[0] == 2
    code, out, _ = run(capsys, "serve", "soup", "--workspace", "bar", "--output", '{"a": 1}', "-o", "json")
    assert json.loads(out) == {"command": "soup", "workspace": "bar", "output": {"a": 1}}
    assert run(capsys, "models", "serve", "soup", "--json") == run(capsys, "serve", "soup", "--json")
    assert run(capsys, "models", "list", "soup")[0] == 2
    assert run(capsys, "models", "cook")[0] == 2
    code, out, err = run(capsys, "rollout", "start", "m", "2", "--policy", "{wrong")
    assert (code, out) == (2, "")
    assert "not JSON" in err


def test_what_a_view_names_as_failures_is_the_exit_code(platform: Any, capsys: Any) -> None:
    assert run(capsys, "oven", "check", "2") == (0, "field\tvalue\nburnt\t0\n", "")
    assert run(capsys, "oven", "check", "2", "--burnt", "3") == (1, "field\tvalue\nburnt\t3\n", "")
    for how in ("table", "json"):
        code, out, err = run(capsys, "oven", "check", "2", "--burnt", "3", "--smoke", "pan", "-o", how)
        assert (code, out, err) == (1, "", "2 times: smoke from ['pan']\n")


def test_a_command_of_three_words_keeps_the_limit_of_a_project(platform: Any, capsys: Any) -> None:
    code, out, err = run(capsys, "oven", "shelf", "list")
    assert (code, out.split(), err) == (0, ["shelf", *map(str, range(7))], "")
    assert run(capsys, "oven", "shelf", "list", "--limit", "2")[1].split() == ["shelf", "0", "1"]
    for flags, said in (
        (("--kind", "wire"), " of wire"),
        (("--height", "9"), " at 9 cm"),
        (("--kind", "wire", "--height", "9"), " of wire at 9 cm"),
    ):
        assert run(capsys, "oven", "shelf", "list", *flags)[2] == f"there is no shelf{said}\n"


def test_the_ways_to_write_a_value_are_those_that_a_view_may_name() -> None:
    assert set(FORMS) == set(_FORMS)


def test_a_function_without_a_command_takes_its_arguments_as_flags(platform: Any, capsys: Any) -> None:
    code, out, err = run(capsys, "run", "cli_dish", "--name", "egg", "--minutes", "4")
    assert (code, json.loads(out)["minutes"]) == (0, 4.0), err
    code, out, _ = run(capsys, "run", "cli_dish", "--json", '{"name": "egg"}', "--minutes", "5")
    assert json.loads(out) == {"name": "egg", "minutes": 5.0, "by": None}
    code, _, err = run(capsys, "run", "cli_dish", "--nam", "egg")
    assert code == 2
    assert "unrecognized arguments: --nam egg" in err
    assert run(capsys, "models", "list", "--nothing")[0] == 2


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("rollout end MODEL", "names the arguments ['model']"),
        ("cook it now again", "is not one to three words"),
        ("Cook", "is not one to three words"),
        ("", "is not one to three words"),
        ("cook size=3", "names the arguments ['size']"),
    ],
)
def test_a_command_that_cannot_be_is_refused_at_import(command: str, wrong: str) -> None:
    with pytest.raises(DeclarationError, match=re.escape(wrong)):

        @function(http=True, command=command)
        def cli_refused(name: str) -> str:
            """Say a name."""
            return name


def test_a_command_is_called_by_http(capsys: Any) -> None:
    with pytest.raises(DeclarationError, match="add http=True"):

        @function(command="cook")
        def cli_hidden() -> int:
            """Count."""
            return 1


def test_a_view_that_names_what_is_not_there_is_refused_at_import() -> None:
    with pytest.raises(DeclarationError, match=re.escape("['pair'] is no way to write a value")):
        View(columns="dish: name | steps: steps as pair")
    for failure in ("nam", "result: {nam} is burnt"):
        with pytest.raises(DeclarationError, match=re.escape("view names ['nam']")):

            @function(http=True, command="cook", view=View(failure=failure))
            def cli_burn(name: str) -> int:
                """Burn something."""
                return len(name)

    with pytest.raises(DeclarationError, match=re.escape("view names ['nam']")):

        @function(http=True, command="cook", view=View(text="{nam} is {result}"))
        def cli_misspelt(name: str) -> str:
            """Say a name."""
            return name


NUMBERS = ["5", "-5", "-.5", "-5.", "-1e3", "-1E+3", "-2.5e-7", "1e308", "-0"]
WAYS = {
    "a flag of run": ("run", "cli_weigh", "--x", "{}"),
    "a flag of run, joined": ("run", "cli_weigh", "--x={}"),
    "a list": ("run", "cli_weigh", "--x", "1", "--sizes", "{}", "{}"),
    "a position": ("weigh", "{}", "-o", "json"),
    "a list of a command": ("weigh", "1", "-o", "json", "--sizes", "{}", "--sizes", "{}"),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_number_may_be_negative_and_have_an_exponent(
    platform: Any, capsys: Any, way: str, number: str
) -> None:
    code, out, err = run(capsys, *(word.format(number) for word in WAYS[way]))
    assert code == 0, err
    got = json.loads(out)
    assert (got["sizes"] or [got["x"]] * 2) == [float(number)] * 2


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "-Infinity", "-nan", "1e999", "-1e999"])
@pytest.mark.parametrize("way", WAYS)
def test_a_number_that_is_not_finite_is_refused_by_its_argument(
    platform: Any, capsys: Any, way: str, number: str
) -> None:
    code, out, err = run(capsys, *(word.format(number) for word in WAYS[way]))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert re.match(r"(x|sizes\.0) is -?(nan|inf), which JSON cannot carry; give a finite number", err), err


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"x": NaN}', "x is nan"),
        ('{"x": 1, "by": {"a": [1, -1e999]}}', "by.a.1 is -inf"),
        ('{"x": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"x"', "not JSON"),
        ("[1]", "--json holds [1]; give an object"),
        ("3", "--json holds 3; give an object"),
    ],
    ids=lambda each: each[:20],
)
def test_what_is_no_object_of_finite_values_is_refused(
    platform: Any, capsys: Any, text: str, wrong: str
) -> None:
    code, out, err = run(capsys, "run", "cli_weigh", "--json", text, "--n", "1")
    assert (code, out) == (2, "")
    assert wrong in err
    assert len(err.splitlines()) == 1


def test_bytes_that_are_no_text_are_refused(platform: Any, tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "bytes.json").write_bytes(b'{"x": "\xff"}')
    code, _, err = run(capsys, "run", "cli_weigh", "--json", f"@{tmp_path}/bytes.json")
    assert (code, "is not UTF-8" in err) == (2, True), err
    code, _, err = run(capsys, "run", "cli_weigh", "--x", "1", "--tags", "\udcff")
    assert (code, "is not valid UTF-8" in err) == (2, True), err


@pytest.mark.parametrize(
    "command", [("run", "cli_weigh", "--x", "1"), ("weigh", "1", "-o", "json")], ids=" ".join
)
@pytest.mark.parametrize(
    "words",
    [
        ("--tags", "a", "b", "c"),
        ("--tags", "a", "--tags", "b", "c"),
        ("--tags", "a", "--tags", "b", "--tags=c"),
    ],
    ids=" ".join,
)
def test_a_list_collects_all_that_is_said(
    platform: Any, capsys: Any, command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *command, *words)
    assert code == 0, err
    assert json.loads(out)["tags"] == ["a", "b", "c"]


def test_a_value_that_begins_as_an_option_says_how_it_is_written(platform: Any, capsys: Any) -> None:
    code, _, err = run(capsys, "run", "cli_weigh", "--x", "1", "--n", "-abc")
    assert (code, "a value that begins with - is written --n=VALUE" in err) == (2, True), err


@pytest.mark.parametrize("verb", ["run", "submit"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_function_has_its_arguments(platform: Any, capsys: Any, verb: str, option: str) -> None:
    code, out, err = run(capsys, verb, "cli_weigh", option)
    text = " ".join(out.split())
    assert code == 0, err
    assert "Weigh something." in text
    for shown in (
        "--x X number, required: Weight, in grams",
        "--n N integer: Number of pieces, 100 % of them (default: 3)",
        "--tags [TAGS ...] list of string: Words that describe it",
        "--sizes [X ...] list of number or null: Sizes, in cm",
        "--by JSON object or null: Weights by part",
    ):
        assert shown in text
    code, out, _ = run(capsys, verb, option)
    assert (code, "--key" in out, "Weigh" in out) == (0, True, False)
    code, _, err = run(capsys, verb, "cli_weight", option)
    assert (code, "cli_weigh" in err) == (1, True)


def test_help_of_a_function_needs_no_platform_where_it_runs_here(
    home: Any, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TOQUE_STORE", f"file://{home}/store")
    code, out, err = run(capsys, "run", "cli_weigh", "--here", "--help")
    assert (code, "Weight, in grams" in out) == (0, True), err
    code, out, err = run(capsys, "run", "cli_weigh", "--here", "--x", "-1e3", "--tags", "a")
    assert (code, json.loads(out)["x"]) == (0, -1000.0), err
    code, out, err = run(capsys, "--home", str(home), "run", "cli_weigh", "--help")
    assert (code, "--key" in out, "nothing runs in" in err) == (0, True, True)
