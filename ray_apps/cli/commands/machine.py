"""`toque up`, `down`, `status` and `demo`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ray_apps.cli.command import UsageError, add, find_project_here
from ray_apps.cli.output import out, say, table, value
from ray_apps.local import RunningPlatform, Settings, down, status, up

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

# What Ray Data and Tune would print would tear a demo's bars apart.
_QUIET = {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_AIR_NEW_OUTPUT": "0"}


def register(commands: Commands) -> None:
    """Add the commands."""
    starting = add(commands, "up", _up, "start the platform on this machine")
    starting.add_argument("--project", help="module of your definitions (default: TOQUE_PROJECT)")
    starting.add_argument("--clock", choices=["system", "replay"], help="whose time counts")
    starting.add_argument("--store", help="address of the store (default: a folder in the state folder)")
    starting.add_argument("--redis", help="address of a Redis (default: one is started)")
    starting.add_argument("--port", type=int, help="of the HTTP door (default: 8000)")
    starting.add_argument("--cpus", type=int, help="CPUs that Ray may count on")
    starting.add_argument(
        "--fixed-ports", action="store_true", help="stop at a taken port instead of moving on"
    )
    add(commands, "down", _down, "end every process of the platform on this machine")
    asking = add(commands, "status", _status, "show what runs and whether it answers")
    asking.add_argument("--json", action="store_true", help="print it as JSON")
    asking.add_argument(
        "--environment", action="store_true", help="print shell lines for a client, with the token"
    )
    showing = add(commands, "demo", _demo, "run the project's demo: the module `demo` in it")
    showing.add_argument("--project", help="module of the project (default: TOQUE_PROJECT)")
    showing.add_argument("rest", nargs=argparse.REMAINDER, help="arguments for the demo")


def settings_of(given: argparse.Namespace) -> Settings:
    """Settings from the environment and the command line. Raises: pydantic.ValidationError."""
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


def _up(given: argparse.Namespace) -> int:
    settings = settings_of(given)
    if settings.project:
        _require(settings.project)
    with out.status("starting") as spinner:

        def report(step: str) -> None:
            spinner.update(step)
            if not out.is_terminal or step.startswith("port "):
                say(step)

        running = up(settings, report=report)
    _welcome(running)
    return 0


def _welcome(running: RunningPlatform) -> None:
    say(f"up in {running.timings_s.get('ready', 0):.0f} s")
    doors = [
        ("HTTP", running.url),
        ("jobs", running.jobs_url),
        *((f"model {name}", f"{running.url}/v2/models/{name}") for name in running.models),
        ("token", str(running.settings.token_file)),
    ]
    table(("door", "where"), doors)
    say("`toque down` ends it")


def _down(given: argparse.Namespace) -> int:
    ended = down(Path(given.home), report=say)
    say("nothing was running" if ended == 0 else "down")
    return 0


def _status(given: argparse.Namespace) -> int:
    found = status(Path(given.home))
    if given.environment and found.running:
        for name, content in found.running.client_environment().items():
            say(f"export {name}='{content}'")
    elif given.json:
        value(found.model_dump(mode="json", exclude={"running"}) | {"healthy": found.healthy})
    elif not found.parts:
        say(f"nothing runs in {found.home}")
    else:
        table(("part", "answers", "where"), [(part.name, part.up, part.where) for part in found.parts])
        say(f"{found.processes} processes")
    return 0 if found.healthy else 1


def _demo(given: argparse.Namespace) -> int:
    project = given.project or os.environ.get("TOQUE_PROJECT")
    if not project:
        raise UsageError("which project? give --project or set TOQUE_PROJECT, as in examples.flights")
    module = f"{project}.demo"
    # Ray reads how to authenticate, and what to print, when it is first imported, and the project may do that.
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
