"""`toque up`, `down`, `status` and `demo`."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toque.ray_apps.cli.arguments import arg, flag
from toque.ray_apps.cli.command import Commands, Given, add, find_project_here
from toque.ray_apps.cli.commands.platform.cluster import explained
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import chosen, columns, message, note, table, value

if TYPE_CHECKING:
    from pydantic import ValidationError

    from toque.ray_apps.local import Settings

# toque.ray_apps.local is imported by the commands that need it: it brings Redis and the tables, half a second.

# What Ray Data and Tune would print would tear a demo's bars apart.
_QUIET = {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_AIR_NEW_OUTPUT": "0"}

_DOORS = columns("door | where")
_PARTS = columns("part: name | answers: up | where")

_PROJECT = arg("--project MODULE", "module of your definitions (default: TOQUE_PROJECT)")
_PROJECTS = arg(
    "--project MODULE",
    "module of your definitions, or one for each workspace as in base,payments=teams.payments (default: TOQUE_PROJECT)",
)
_CLOCK = arg(
    "--clock", "whose time counts: the machine's, or one that a driver sets", choices=["system", "replay"]
)
_STORE = arg("--store URL", "address of the store (default: a folder in the state folder)")
_REDIS = arg("--redis URL", "address of a Redis (default: one is started)")
_PORT = arg("--port", "port of the HTTP door (default: 8000)", type=int)
_CPUS = arg("--cpus N", "CPUs that Ray may count on (default: all)", type=int)
_CLUSTER = flag(
    "--cluster", "end the applications of the cluster that this machine is a node of, and no node"
)
_FIXED = flag("--fixed-ports", "stop at a taken port instead of moving on")
_ENVIRONMENT = flag("--environment", "print shell lines for a client, with the token")
_REST = arg("rest", "arguments for the demo, after --", nargs=argparse.REMAINDER)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "up", _up, _PROJECTS, _CLOCK, _STORE, _REDIS, _PORT, _CPUS, _FIXED)
    add(commands, "down", _down, _CLUSTER)
    add(commands, "status", _status, _ENVIRONMENT)
    add(commands, "demo", _demo, _PROJECT, _REST)


def settings_of(given: Given) -> Settings:
    """Settings from the environment and the command line. Raises: UsageError for a value that cannot be."""
    from pydantic import ValidationError

    from toque.ray_apps.local import Settings

    try:
        return Settings.of(
            os.environ,
            home=Path(given.home),
            project=given.project,
            clock=given.clock,
            store_url=given.store,
            redis_url=given.redis,
            num_cpus=given.cpus,
            ports=None if given.port is None else {"http": given.port},
            fixed_ports=given.fixed_ports or None,
        )
    except ValidationError as error:
        raise UsageError(wrong_fields(error)) from error


def wrong_fields(error: ValidationError) -> str:
    """What is wrong with which field, and what its value is, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'value'}: {each['msg']}, not {json.dumps(each['input'], default=str)}"
        for each in error.errors()
    )


def _up(given: Given) -> None:
    """Start the platform on this machine."""
    from toque.ray_apps.local import up

    settings = settings_of(given)
    os.environ.update(
        settings.ray_login()
    )  # Ray reads them when it is first imported, which the projects may do
    for module in _modules(settings.project or ""):
        _require(module)
    with _reporting() as report:
        running = up(settings, report=report)
    doors = [
        ("HTTP", running.url),
        ("jobs", running.jobs_url),
        *((f"model {name}", running.model_url(name)) for name in running.models),
        ("token", str(running.settings.token_file)),
    ]
    rows = [{"door": door, "where": where} for door, where in doors]
    ready = f"up in {running.timings_s.get('ready', 0):.0f} s; `toque down` ends it"
    table(given.output, _DOORS, rows, remark=ready)


def _modules(projects: str) -> list[str]:
    """The modules of the projects of all workspaces. Raises: UsageError if they cannot be read."""
    from toque.functions.runtime.context import projects_of

    try:
        return list(projects_of(projects).values())
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def _reporting() -> Iterator[Callable[[str], None]]:
    """Show each step on standard error: beside a spinner at a terminal, as a line elsewhere. Raises: Failed."""
    from toque.ray_apps.local import LocalError

    try:
        if not sys.stderr.isatty():
            yield note
            return
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        with console.status("starting") as spinner:

            def report(step: str) -> None:
                spinner.update(step)
                if step.startswith("port "):  # another port than the one asked for: to be seen afterwards
                    note(step)

            yield report
    except LocalError as error:
        first, _, log = str(error).partition("\n")
        if log:  # the end of the log of what did not come up
            note(log)
        raise Failed(first) from error


def _down(given: Given) -> None:
    """End every process of the platform on this machine, or the platform on its cluster."""
    if given.cluster:
        from toque.ray_apps.deployment.deploy import shut_down

        with explained():
            was_up = shut_down()
        text = (
            "the platform is down; nodes, store and Redis stay" if was_up else "the platform was not running"
        )
        message(given.output, text, {"ended": was_up})
        return
    from toque.ray_apps.local import down

    with _reporting() as report:
        ended = down(Path(given.home), report=report)
    message(given.output, "nothing was running" if ended == 0 else "down", {"ended_processes": ended})


def _status(given: Given) -> int:
    """Show what runs and whether it answers."""
    from toque.ray_apps.local import status

    found = status(Path(given.home))
    if given.environment and found.running:
        environment = found.running.client_environment()
        lines = [f"export {name}={shlex.quote(content)}" for name, content in environment.items()]
        message(given.output, "\n".join(lines), environment)
    elif chosen(given.output) == "json":
        value(found.model_dump(mode="json", exclude={"running"}) | {"healthy": found.healthy})
    elif not found.parts:
        note(f"nothing runs in {found.home}; `toque up` starts it")
    else:
        parts = [part.model_dump() for part in found.parts]
        table(given.output, _PARTS, parts, remark=f"{found.processes} processes, logs in {found.logs}")
    return 0 if found.healthy else 1


def _demo(given: Given) -> int:
    """Run the project's demo: the module `demo` in it."""
    project = given.project or os.environ.get("TOQUE_PROJECT")
    if not project:
        raise UsageError("which project? give --project or set TOQUE_PROJECT, as in examples.flights")
    module = f"{project}.demo"
    # Ray reads how to authenticate, and what to print, when it is first imported, and the project may do that.
    from toque.ray_apps.local import Settings

    os.environ.update(Settings.of(os.environ, home=Path(given.home)).ray_login() | _QUIET)
    _require(module)
    os.environ.update({"TOQUE_PROJECT": project, "TOQUE_HOME": str(Path(given.home).resolve())})
    sys.argv = [module, *given.rest[given.rest[:1] == ["--"] :]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _require(module: str) -> None:
    """Raises: UsageError if a project's module cannot be found from here."""
    find_project_here()
    try:
        there = find_spec(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"no module {module!r} can be imported from {Path.cwd()}: {error}") from error
    if there is None:
        raise UsageError(f"no module {module!r} in {Path.cwd()} or on PYTHONPATH: is the name right?")
