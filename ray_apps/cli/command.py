"""How a module of the command line adds a command, the arguments that several share, and what a command is given."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.output import FORMATS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  # argparse has no public name

INTERRUPTED = 130  # exit code after Ctrl-C

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")


class UsageError(Exception):
    """A command line that asks for something that cannot be."""


class Failed(Exception):  # noqa: N818  # what came of a command
    """A command that did not reach its end; the message says why."""


class Given(argparse.Namespace):
    """What the command line gave, and the platform it is meant for."""

    @cached_property
    def client(self) -> Client:
        """A client of the platform, made when a command first asks it. Raises: Unreachable."""
        return client_of(self.home)


Command = Callable[[Given], int | None]  # gives the exit code; None: 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and suggest the command or choice that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        found = _INVALID_CHOICE.search(message)
        if found:
            choices = re.findall(r"[\w.-]+", found[2])
            close = get_close_matches(found[1], choices, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}"
            message = f"{message[: found.start()]}there is no {found[1]!r}; {hint}"
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists the arguments\n")


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command: its names and options, as `argparse` takes them."""

    names: tuple[str, ...]
    options: dict[str, Any]


def arg(*names: str, **options: Any) -> Argument:
    """Describe an argument in the words of `ArgumentParser.add_argument`."""
    return Argument(names, options)


def flag(*names: str, help: str) -> Argument:  # noqa: A002  # argparse's word
    """Describe an option without a value."""
    return arg(*names, action="store_true", help=help)


def repeatable(name: str, metavar: str, *, help: str, **options: Any) -> Argument:  # noqa: A002  # argparse's word
    """Describe an option that may be given more than once."""
    shown = f"{help}; repeatable"
    return arg(name, action="append", default=[], metavar=metavar, help=shown, **options)


def limit(default: int | None = 30) -> Argument:
    """Describe `--limit` of a command that lists; without a default it lists everything."""
    shown = "all" if default is None else default
    text = f"how many rows to list, the newest first (default: {shown})"
    return arg("--limit", type=_positive, default=default, metavar="N", help=text)


# The names of these arguments are those of `ray_apps.cli.names.KINDS`, which knows how to look an unknown one up.
MODEL = arg("model", help="name of the model, as `toque models list` shows it")
VERSION = arg("version", type=int, help="number of the version, as `toque models show MODEL` shows it")
VERSION_OR_ALIAS = arg("version", help="number of the version, or an alias such as champion")
INVOCATION = arg(
    "invocation", metavar="id", help="ID of the invocation, as `toque invocations list` shows it"
)
RUN = arg("run", help="ID of the run, as `toque runs list EXPERIMENT` shows it")
RUNS = arg("runs", nargs="+", metavar="RUN", help=RUN.options["help"])

REASON = arg("--reason", default="", help="why; it stands in the journal beside your name")
REASON_REQUIRED = arg("--reason", required=True, help=REASON.options["help"])
OVERRIDE = arg(
    "--override",
    default="",
    metavar="REASON",
    help="REASON of an emergency change against the model's policy; the version keeps the mark for ever",
)
FOLDER_HERE = arg("--to", default=".", metavar="FOLDER", help="where the files go (default: here)")

_OUTPUT = arg(
    "-o",
    "--output",
    choices=FORMATS,
    help="table: texts shortened to fit the terminal; wide: more columns, nothing shortened; tsv: tab-separated, "
    "with a header line; json (default: table at a terminal, else tsv)",
)
_JSON = arg("--json", action="store_const", const="json", dest="output", help="short for -o json")


def add(commands: Commands, name: str, run: Command, *arguments: Argument, json_option: bool = True) -> None:
    """Add a command `name` that calls `run`, whose docstring is the command's help.

    json_option: whether `--json` is short for `-o json`; not where it carries the arguments of a function.
    """
    made = _add_parser(commands, name, run.__doc__ or "")
    made.set_defaults(command=run)
    for each in (*arguments, _OUTPUT, *([_JSON] if json_option else [])):
        made.add_argument(*each.names, **each.options)


def group(commands: Commands, name: str, description: str) -> Commands:
    """Add a command with commands of its own."""
    made = _add_parser(commands, name, description)
    return made.add_subparsers(required=True, metavar="ACTION", title="actions")


def read_json(text: str) -> Any:
    """A JSON value from the command line: itself, `@file`, or `-` for standard input. Raises: UsageError."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        text = read_file(text[1:]).decode()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"this is not JSON: {text[:80]!r}: {error}") from error


def read_file(path: str) -> bytes:
    """The content of a file that the command line names. Raises: UsageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error


def find_project_here() -> None:
    """Have a project found where one stands, which an installed command would not look into."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _add_parser(commands: Commands, name: str, description: str) -> argparse.ArgumentParser:
    summary = f"{description[0].lower()}{description[1:].removesuffix('.')}"
    return commands.add_parser(name, help=summary, description=description)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
