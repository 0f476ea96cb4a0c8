"""How a room of the command line adds a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  # argparse has no public name

Command = Callable[[argparse.Namespace], int]
OVERRIDE = "in an emergency, against the model's policy; marked for ever"
INTERRUPTED = 130  # exit code after Ctrl-C


class UsageError(Exception):
    """The command line asks for something that cannot be."""


def add(commands: Commands, name: str, run: Command, help_text: str) -> argparse.ArgumentParser:
    """A command `name` that calls `run`; returns its parser, for its arguments."""
    made = commands.add_parser(name, help=help_text, description=help_text)
    made.set_defaults(command=run)
    return made


def group(commands: Commands, name: str, help_text: str) -> Commands:
    """A command with commands of its own."""
    made = commands.add_parser(name, help=help_text, description=help_text)
    return made.add_subparsers(required=True, metavar="ACTION")


def find_project_here() -> None:
    """Have a project found where one stands, which an installed command would not look into."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
