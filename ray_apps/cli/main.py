"""Reads a command line, runs one command, turns its error into a message and an exit code.

Exit codes: 0 well; 1 failed, refused, or a name that the platform does not know; 2 the command line itself was wrong;
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toque.ray_apps.cli.command import Given, Parser
from toque.ray_apps.cli.commands.platform import (
    access,
    calls,
    cluster,
    console,
    history,
    ledger,
    machine,
    privacy,
    store,
)
from toque.ray_apps.cli.commands.platform.cluster import explained
from toque.ray_apps.cli.commands.serving import (
    capacity,
    load,
    monitoring,
    predict,
    replay,
    rollouts,
    trace,
    traffic,
)
from toque.ray_apps.cli.commands.training import features, plans, project, runs, train, vectors
from toque.ray_apps.cli.commands.versions import models, prompts
from toque.ray_apps.cli.disk import full_disk
from toque.ray_apps.cli.errors import FAILED, INTERRUPTED, CommandError, Refused, UsageError
from toque.ray_apps.cli.names import explain
from toque.ray_apps.cli.output import complain
from toque.ray_apps.cli.project_folder import ProjectFolder, enter_project, find_project_folder

# The order in which `toque --help` shows the commands.
GROUPS = {
    "a project": (project, train),
    "this machine": (machine, console),
    "a cluster": (cluster,),
    "models": (models, prompts, traffic, rollouts, predict),
    "monitoring": (monitoring, trace, replay),
    "load and capacity": (load, capacity, plans),
    "training": (runs, features, vectors),
    "functions": (calls, ledger),
    "access": (access, privacy),
    "history and backup": (history, store),
}
_EPILOG = """\
`toque COMMAND --help` lists the arguments of a command. Tables fit the terminal; -o wide shows everything, -o json and
-o tsv are for programs, and in a pipe TSV is the default.
Exit codes: 0 well; 1 failed, refused or an unknown name; 2 a command line that cannot be; 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        folder = find_project_folder(Path.cwd())
    except UsageError as error:
        complain(str(error))
        return error.exit_code
    given = parser(folder).parse_args(arguments, Given())
    try:
        return _run(given, folder)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(given: Given, folder: ProjectFolder | None) -> int:
    """Run the command; its error becomes a line on standard error and an exit code."""
    try:
        try:
            if os.environ.get("TOQUE_PROFILE"):
                _apply_profile()
            enter_project(folder)
            code: int = given.command(given) or 0
        except Refused as refused:
            explain(given, refused)
            raise
    except Refused as error:  # what the platform says of itself
        complain(str(error))
        return error.exit_code
    except CommandError as error:
        complain(full_disk(error, Path(given.home)) or str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        full = full_disk(error, Path(given.home))
        if full is None:
            raise
        complain(full)
        return FAILED
    sys.stdout.flush()  # here, so that a closed pipe is seen in `main`
    return code


def _apply_profile() -> None:
    """Put the settings of the deployment profile into this process. Raises: UsageError if it cannot be read."""
    from toque.clusters.profile import apply_profile  # late: pydantic, for those who have a profile

    with explained():
        apply_profile(os.environ)


def parser(folder: ProjectFolder | None = None) -> argparse.ArgumentParser:
    """A parser with every command there is. folder: of the project that the command is given in."""
    made = Parser(
        prog="toque",
        description="An AI platform made of small serverless functions.",
        usage="toque [--home FOLDER] [--workspace NAME] COMMAND …",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--home",
        default=os.environ.get("TOQUE_HOME") or _state_folder(folder),
        metavar="FOLDER",
        help="state folder of a platform on this machine (default: %(default)s)",
    )
    made.add_argument(
        "--workspace",
        default=os.environ.get("TOQUE_WORKSPACE") or None,
        metavar="NAME",
        help="workspace to work in (default: TOQUE_WORKSPACE, else the token's only one, else default)",
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="toque")
    sections = []
    for title, modules in GROUPS.items():
        before = set(commands.choices)
        for module in modules:
            module.register(commands)
        sections.append(f"{title}:\n" + "\n".join(_summaries(commands, before)))
    made.epilog = "\n\n".join([*sections, _EPILOG])
    return made


def _state_folder(folder: ProjectFolder | None) -> str:
    """State folder where none is given: beside the project's file, else here."""
    return ".toque" if folder is None or folder.path == Path.cwd() else str(folder.path / ".toque")


def _summaries(commands: Any, before: set[str]) -> list[str]:
    """A line for each command that was added after `before`."""
    helps = {each.dest: each.help for each in commands._get_subactions()}  # noqa: SLF001  # argparse offers no other
    return [f"  {name:<13}{helps[name]}" for name in commands.choices if name not in before]
