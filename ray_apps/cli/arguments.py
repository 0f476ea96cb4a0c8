"""How a module of the command line adds a command, the arguments that several commands share, and how these are read."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from toque.clusters.did_you_mean import did_you_mean
from toque.ray_apps.cli.client import Client, client_of
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import FORMATS

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")
_WITHOUT_VALUE = re.compile(r"argument (?:-\w/)?(--[\w-]+): expected (?:at least )?one argument")
_NEGATIVE_NUMBER = re.compile(r"-((\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)$", re.IGNORECASE)
# argparse has no public name for what `add_subparsers` gives, and its class takes no parameter when it runs.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command: its names and options, as `argparse` takes them."""

    names: tuple[str, ...]
    options: dict[str, Any]


def arg(form: str, help: str, **options: Any) -> Argument:  # noqa: A002  # argparse's word
    """Describe an argument by the form a reader sees, as in "-f --flag VALUE", or a positional one by its name.

    A positional argument that is shown by another word has that after its name. options: as `argparse` takes them.
    """
    words = form.split()
    names = tuple(each for each in words if each.startswith("-")) or (words[0],)
    shown = {"metavar": words[-1]} if len(words) > len(names) else {}
    return Argument(names, {"help": help, **shown, **options})


def flag(form: str, help: str) -> Argument:  # noqa: A002  # argparse's word
    """Describe an option without a value."""
    return arg(form, help, action="store_true")


def repeatable(form: str, help: str, **options: Any) -> Argument:  # noqa: A002  # argparse's word
    """Describe an option that may be given more than once."""
    return arg(form, f"{help}; repeatable", action="append", default=[], **options)


def limit(default: int | None = 30) -> Argument:
    """Describe `--limit` of a command that lists; without a default it lists everything."""
    shown = "all" if default is None else default
    text = f"how many rows to list, the newest first (default: {shown})"
    return arg("--limit N", text, type=_positive, default=default)


# The names of these arguments are those of `toque.ray_apps.cli.names.KINDS`, which knows how to look an unknown one up.
MODEL = arg("model", "name of the model, as `toque models list` shows it")
VERSION = arg("version", "number of the version, as `toque models show MODEL` shows it", type=int)
VERSION_OR_ALIAS = arg("version", "number of the version, or an alias such as champion")
INVOCATION = arg("invocation id", "ID of the invocation, as `toque invocations list` shows it")
RUN = arg("run", "ID of the run, as `toque runs list EXPERIMENT` shows it")
RUNS = arg("runs RUN", RUN.options["help"], nargs="+")

EXPECTED_CHAMPION = arg(
    "--expected VERSION", "the champion this was decided on; another one is an error", type=int
)
REASON = arg("--reason", "why; it stands in the journal beside your name", default="")
OVERRIDE = arg(
    "--override REASON",
    "REASON of an emergency change against the model's policy, by an admin; the version keeps the mark for ever",
    default="",
)
FOLDER_HERE = arg("--to FOLDER", "where the files go (default: here)", default=".")
OUTPUT = arg(
    "-o --output",
    "table: texts shortened to fit the terminal; wide: more columns, nothing shortened; tsv: tab-separated, "
    "with a header line; json (default: table at a terminal, else tsv)",
    choices=FORMATS,
)
_HELP = arg("-h --help", "show this help message and exit", action="help")
JSON = arg("--json", "short for -o json", action="store_const", const="json", dest="output")


def read_json(text: str) -> Any:
    """A JSON value from the command line: itself, `@file`, or `-` for standard input. Raises: UsageError."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        file = text[1:]
        try:
            text = read_file(file).decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{file!r} is not UTF-8: {error}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 1,000 deep
        raise UsageError(f"this is not JSON: {text[:80]!r}: {error}") from error


def read_file(path: str) -> bytes:
    """The content of a file that the command line names. Raises: UsageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error


def read_pair(text: str, wanted: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE. wanted: an option's form with an example, for the error. Raises: UsageError."""
    name, equals, content = text.partition("=")
    if not (name and equals):
        raise UsageError(f"{text!r} has no name and value; write {wanted}")
    return name, content


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


class Given(argparse.Namespace):
    """What the command line gave, and the platform it is meant for."""

    passed: list[str]  # flags that the command passes on to a function
    takes_flags = False

    @cached_property
    def client(self) -> Client:
        """A client of the platform, made when a command first asks it. Raises: Unreachable."""
        return client_of(self.home, workspace=self.workspace)


Command = Callable[[Given], int | None]  # gives the exit code; None: 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and suggest the command or choice that was probably meant."""

    commands: Commands  # of the one that reads the whole command line

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = _NEGATIVE_NUMBER  # argparse's own takes -1e3 and -inf for options

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        found = _INVALID_CHOICE.search(message)
        if found:
            choices = re.findall(r"[\w.-]+", found[2])
            hint = did_you_mean(found[1], choices).strip() or f"choose from {', '.join(choices)}"
            message = f"{message[: found.start()]}there is no {found[1]!r}; {hint}"
        option = _WITHOUT_VALUE.search(message)
        if option:
            message = f"{message}; a value that begins with - is written {option[1]}=VALUE"
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists the arguments\n")


def add(
    commands: Commands,
    name: str,
    run: Command,
    *arguments: Argument,
    json_option: bool = True,
    help_option: Argument = _HELP,
) -> None:
    """Add a command `name` that calls `run`, whose docstring is the command's help.

    json_option: whether `--json` is short for `-o json`; not where it carries the arguments of a function.
    help_option: what `-h` and `--help` do.
    """
    made = _add_parser(commands, name, run.__doc__ or "", add_help=False)
    made.add_argument(*help_option.names, **help_option.options)
    made.set_defaults(command=run)
    for each in (*arguments, OUTPUT, *([JSON] if json_option else [])):
        made.add_argument(*each.names, **each.options)


def group(commands: Commands, name: str, description: str) -> Commands:
    """Add a command with commands of its own."""
    made = _add_parser(commands, name, description)
    return made.add_subparsers(required=True, metavar="ACTION", title="actions")


def find_project_here() -> None:
    """Have a project found where one stands, which an installed command would not look into."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _add_parser(
    commands: Commands, name: str, description: str, *, add_help: bool = True
) -> argparse.ArgumentParser:
    summary = f"{description[:1].lower()}{description[1:].removesuffix('.')}"
    return commands.add_parser(
        name, help=summary, description=description, allow_abbrev=False, add_help=add_help
    )
