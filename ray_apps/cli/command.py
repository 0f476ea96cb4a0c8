"""How a module of the command line adds a command, and what a command is given."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NoReturn, TypeAlias

from toque.clusters.did_you_mean import did_you_mean
from toque.ray_apps.cli.arguments import JSON, OUTPUT, Argument
from toque.ray_apps.cli.client import Client, client_of

# argparse has no public name for what `add_subparsers` gives, and its class takes no parameter when it runs.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

_INVALID_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)")


class Given(argparse.Namespace):
    """What the command line gave, and the platform it is meant for."""

    @cached_property
    def client(self) -> Client:
        """A client of the platform, made when a command first asks it. Raises: Unreachable."""
        return client_of(self.home, workspace=self.workspace)


Command = Callable[[Given], int | None]  # gives the exit code; None: 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line and suggest the command or choice that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        found = _INVALID_CHOICE.search(message)
        if found:
            choices = re.findall(r"[\w.-]+", found[2])
            hint = did_you_mean(found[1], choices).strip() or f"choose from {', '.join(choices)}"
            message = f"{message[: found.start()]}there is no {found[1]!r}; {hint}"
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists the arguments\n")


def add(commands: Commands, name: str, run: Command, *arguments: Argument, json_option: bool = True) -> None:
    """Add a command `name` that calls `run`, whose docstring is the command's help.

    json_option: whether `--json` is short for `-o json`; not where it carries the arguments of a function.
    """
    made = _add_parser(commands, name, run.__doc__ or "")
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


def _add_parser(commands: Commands, name: str, description: str) -> argparse.ArgumentParser:
    summary = f"{description[:1].lower()}{description[1:].removesuffix('.')}"
    return commands.add_parser(name, help=summary, description=description)
