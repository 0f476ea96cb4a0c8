"""Reads a command line, runs one command in the project's folder, turns its error into a message and an exit code.

Exit codes: 0 well; 1 failed, refused, or a name that the platform does not know; 2 the command line itself was wrong;
130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toque.ray_apps.cli.arguments import Commands, Given, Parser
from toque.ray_apps.cli.client import client_of
from toque.ray_apps.cli.commands import (
    access,
    calls,
    capacity,
    features,
    history,
    load,
    machine,
    models,
    monitoring,
    predict,
    project,
    rollouts,
    runs,
    traffic,
)
from toque.ray_apps.cli.commands.machine import explained
from toque.ray_apps.cli.declared import find_group, find_tables, platform_commands
from toque.ray_apps.cli.declared import register as register_tables
from toque.ray_apps.cli.errors import FAILED, INTERRUPTED, CommandError, Refused, UsageError
from toque.ray_apps.cli.names import explain
from toque.ray_apps.cli.output import complain

# The order in which `toque --help` shows the commands.
GROUPS = {
    "a project": (project.register,),
    "this machine": (machine.register,),
    "a cluster": (machine.register_cluster,),
    "models": (models.register, traffic.register, rollouts.register, predict.register),
    "monitoring": (monitoring.register,),
    "load and capacity": (load.register, capacity.register),
    "training and features": (runs.register, features.register),
    "functions": (calls.register,),
    "access and data": (access.register, history.register),
}
# Commands by the words that they had before 0.2, which go on for that release.
MOVED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("vectors", "--refresh"): ("features", "refresh-vectors"),
    ("monitors",): ("monitor", "status"),
    ("audit-log",): ("access", "log"),
    ("audit-keys",): ("store", "keys"),
    ("experiments",): ("runs", "experiments"),
    **{
        (action,): (word, action)
        for word, actions in {
            "monitor": ("scores", "labels", "incidents", "why", "drift", "label", "trace", "replay"),
            "features": ("catalog", "vectors", "search"),
            "invocations": ("logs", "queue", "costs"),
            "access": ("token", "workspace"),
            "privacy": ("erase", "erasures", "retention"),
            "store": ("audit", "backup", "restore"),
        }.items()
        for action in actions
    },
}
_DEFAULT_ACTIONS = {"features": "list"}
_EPILOG = """\
`toque COMMAND --help` lists the arguments of a command. Tables fit the terminal; -o wide shows everything, -o json and
-o tsv are for programs, and in a pipe TSV is the default.
Exit codes: 0 well; 1 failed, refused or an unknown name; 2 a command line that cannot be; 130 interrupted."""
FILE = "pyproject.toml"
"""File whose table `tool.toque` marks a project's folder and names its module, as in `project = "houses"`."""
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# What libraries that are not written in Python say: pyarrow, deltalake, Rust's standard library, SQLite.
_FULL_WORDS = (
    "no space left on device",
    "os error 28",
    "disk quota exceeded",
    "os error 122",
    "disk is full",
)
_MEGABYTE = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        folder = find_project_folder(Path.cwd())
    except UsageError as error:
        complain(str(error))
        return error.exit_code
    made = parser(folder)
    words = now_called(list(sys.argv[1:] if arguments is None else arguments), made.commands)
    _add_of_project(made, words, made.commands)
    try:
        given, passed = made.parse_known_args(words, Given())
    except CommandError as error:  # of what reads an argument
        complain(str(error))
        return error.exit_code
    given.passed = passed
    if passed and not given.takes_flags:
        made.error(f"unrecognized arguments: {' '.join(passed)}")
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
        text = full_disk(error, Path(given.home)) or (str(error) if _is_of_project(error) else None)
        if text is None:
            raise
        complain(text)
        return FAILED
    sys.stdout.flush()  # here, so that a closed pipe is seen in `main`
    return code


def _is_of_project(error: Exception) -> bool:
    """Whether an error says what is wrong with the user's project; its class is only asked for where it is imported."""
    definitions = sys.modules.get("toque.functions.runtime.definitions")  # which brings Ray
    return definitions is not None and isinstance(error, definitions.ProjectError)


def _apply_profile() -> None:
    """Put the settings of the deployment profile into this process. Raises: UsageError if it cannot be read."""
    from toque.clusters.profile import apply_profile  # late: pydantic, for those who have a profile

    with explained():
        apply_profile(os.environ)


def parser(folder: ProjectFolder | None = None) -> Parser:
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
    commands: Any = made.add_subparsers(
        required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="toque"
    )
    made.commands = commands
    sections, declared = [], platform_commands()
    for title, registers in GROUPS.items():
        before = set(commands.choices)
        for register in registers:
            register(commands)
        for word in set(commands.choices) - before:
            register_tables(commands, declared.get(word, ()))
        sections.append(f"{title}:\n" + "\n".join(_summaries(commands, before)))
    made.epilog = "\n".join([*sections, "", _EPILOG])
    return made


def now_called(words: list[str], commands: Commands) -> list[str]:
    """A command line in the words of this release."""
    at = first_word(words)
    rest = words[at:]
    for before, after in MOVED.items():
        if rest[:1] == [before[0]] and set(before) <= set(rest):
            return [*words[:at], *after, *(word for word in rest[1:] if word not in before[1:])]
    action = _DEFAULT_ACTIONS.get(rest[0]) if rest else None
    if action and not _is_known(rest, commands):
        return [*words[:at], rest[0], action, *rest[1:]]
    return words


def first_word(words: Sequence[str]) -> int:
    """Where in a command line the command begins, after the options of `toque` itself."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in {"--home", "--workspace"} else 1
    return at


def _is_known(words: Sequence[str], commands: Commands) -> bool:
    """Whether a command line begins with the words of a command, or asks for help on what its first word brings together."""
    if words[0] not in commands.choices:
        return False
    actions = find_group(commands, words[0])
    return actions is None or (len(words) > 1 and words[1] in {*actions.choices, "-h", "--help"})


def _add_of_project(made: Parser, words: list[str], commands: Commands) -> None:
    """Add the commands of functions of the project, if the command line begins with words that no other has.

    Where no platform can be asked, the word is left to be refused as unknown.
    """
    at = first_word(words)
    if at >= len(words) or _is_known(words[at:], commands):
        return
    options = argparse.Namespace(**{name: made.get_default(name) for name in ("home", "workspace")})
    given = argparse.ArgumentParser(add_help=False)
    for name in vars(options):
        given.add_argument(f"--{name}")
    given.parse_known_args(words[:at], options)
    with suppress(CommandError):
        client = client_of(options.home, workspace=options.workspace)
        register_tables(commands, find_tables(client, words[at]))


def _state_folder(folder: ProjectFolder | None) -> str:
    """State folder where none is given: beside the project's file, else here."""
    return ".toque" if folder is None or folder.path == Path.cwd() else str(folder.path / ".toque")


def _summaries(commands: Any, before: set[str]) -> list[str]:
    """A line for each command that was added after `before`."""
    helps = {each.dest: each.help for each in commands._get_subactions()}  # noqa: SLF001  # argparse offers no other
    return [f"  {name:<13}{helps[name]}" for name in commands.choices if name not in before]


@dataclass(frozen=True, slots=True)
class ProjectFolder:
    """Folder of a project, and its module as TOQUE_PROJECT says it."""

    path: Path
    project: str


def find_project_folder(start: Path) -> ProjectFolder | None:
    """Find the nearest folder, from `start` upwards, whose pyproject.toml names a project. Raises: UsageError if one is broken."""
    for folder in (start, *start.parents):
        file = folder / FILE
        try:
            said = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("toque", {})
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} is no TOML: {error}") from error
        project = said.get("project") if isinstance(said, dict) else None
        if isinstance(project, str) and project:
            return ProjectFolder(folder, project)
    return None


def enter_project(folder: ProjectFolder | None) -> None:
    """Have this process, and those it starts, find the project of a folder; what the environment says stands before it."""
    if folder is None:
        return
    os.environ.setdefault("TOQUE_PROJECT", folder.project)
    here = str(folder.path)
    if here not in sys.path:
        sys.path.insert(0, here)
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))


def full_disk(error: BaseException, home: Path) -> str | None:
    """Say in plain words that a disk is full, if an error or one behind it is of that; else None.

    home: the state folder, whose disk is named, beside that of temporary files, with what each has left.
    """
    if not any(_is_full(one) for one in _behind(error, set())):
        return None
    places = {"the state folder": home, "temporary files": Path(tempfile.gettempdir())}
    left = "; ".join(f"{what} in {path.absolute()}: {_left(path)}" for what, path in places.items())
    return (
        f"a disk is full, so this ended before its end ({left}). What was recorded before is complete: free some space, and "
        "run the command again"
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL_ERRNOS:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_WORDS)


def _behind(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """Yield an error with all that led to it, and the members of a group."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for one in (error.__cause__, error.__context__, *parts):
        if one is not None:
            yield from _behind(one, seen)


def _left(path: Path) -> str:
    """What the disk of a folder has left, or of the nearest one above it that is there."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return f"{shutil.disk_usage(there).free / _MEGABYTE:,.0f} MB left"
