"""How a module of the command line adds a command, and what every command takes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ray_apps.cli.output import FORMATS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  # argparse has no public name

Command = Callable[[argparse.Namespace], int]
OVERRIDE = "REASON of an emergency change against the model's policy; the version keeps the mark for ever"
INTERRUPTED = 130  # exit code after Ctrl-C

# Options that more than one command has, worded once.
MODEL = "name of the model, as `toque models list` shows it"
VERSION = "number of the version, as `toque models show MODEL` shows it"
VERSION_OR_ALIAS = "number of the version, or an alias such as champion"
INVOCATION = "ID of the invocation, as `toque invocations list` shows it"
RUN = "ID of the run, as `toque runs list EXPERIMENT` shows it"
REASON = "why; it stands in the journal beside your name"

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")


class UsageError(Exception):
    """A command line that asks for something that cannot be."""


class Failed(Exception):  # noqa: N818  # what came of a command
    """A command that did not reach its end; the message says why."""


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


def add(
    commands: Commands, name: str, run: Command, help_text: str, *, json_option: bool = True
) -> argparse.ArgumentParser:
    """Add a command `name` that calls `run`; returns its parser, for its arguments.

    json_option: whether `--json` is short for `-o json`; not where it carries the arguments of a function.
    """
    made = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    made.set_defaults(command=run)
    made.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        help="table: texts shortened to fit the terminal; wide: more columns, nothing shortened; tsv: tab-separated, "
        "with a header line; json (default: table at a terminal, else tsv)",
    )
    if json_option:
        made.add_argument(
            "--json", action="store_const", const="json", dest="output", help="short for -o json"
        )
    return made


def add_limit(parser: argparse.ArgumentParser, *, default: int | None = 30) -> None:
    """Add `--limit` to a command that lists; without a default it lists everything."""
    shown = "all" if default is None else default
    parser.add_argument(
        "--limit",
        type=_positive,
        default=default,
        metavar="N",
        help=f"how many rows to list, the newest first (default: {shown})",
    )


def group(commands: Commands, name: str, help_text: str) -> Commands:
    """Add a command with commands of its own."""
    made = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    return made.add_subparsers(required=True, metavar="ACTION", title="actions")


def find_project_here() -> None:
    """Have a project found where one stands, which an installed command would not look into."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
