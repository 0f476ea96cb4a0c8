"""`toque up`, `down`, `status`, `demo`, `config`, `node`, `deploy`, `ui`: the platform on this machine and on a cluster."""

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

from toque.ray_apps.cli.arguments import Commands, Given, add, arg, find_project_here, flag, group
from toque.ray_apps.cli.client import STATE_FILE
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import chosen, columns, message, note, table, value

if TYPE_CHECKING:
    from pydantic import ValidationError

    from toque.ray_apps.deployment.deploy import TokenPlace
    from toque.ray_apps.local import Settings


# toque.ray_apps.local and deployment are imported by the commands that need them: they bring Redis and the tables, or Ray.

# What Ray Data and Tune would print would tear a demo's bars apart.
_QUIET = {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
ADMIN_FILE = "~/.toque/token"

_DOORS = columns("door | where")
_PARTS = columns("part: name | answers: up | where")
_SETTINGS = columns("setting | value | variable | from: source")
_DEPLOYED = columns("application | state")

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

_SERVE = flag("--serve", "print the config of Ray Serve that `toque deploy` applies, as JSON")
_HEAD = flag("--head", "this node is the cluster's head")
_ADDRESS = arg("--address HOST", "address of the cluster's head, as in 10.0.0.4")
_TYPE = arg("--type NAME", "what the node is for: serve takes replicas, any other name takes experiments")
_BLOCK = flag("--block", "stay until Ray ends")
_MORE = arg(
    "rest", "further arguments of `ray start`, or the whole command, after --", nargs=argparse.REMAINDER
)
_WITHIN = arg(
    "--within SECONDS",
    "when the machine ends (default: 100); `--within 0`: no time is set",
    type=float,
    default=100.0,
)
_WHEN_TOLD = arg(
    "--when-told CLOUD", "wait until the cloud says that it takes the machine", choices=("aws", "gcp")
)
_TOKEN_FILE = arg("--token-file PATH", f"file for the first admin token (default: {ADMIN_FILE})")
_TOKEN_SECRET = arg("--token-secret NAME", "Kubernetes secret for the first admin token, in place of a file")
_NEW_TOKEN = flag("--new-token", "revoke the first admin token, and make another: for who lost its secret")
_RESTART = flag("--restart", "replace every replica, also where nothing changed")
_WAIT = arg(
    "--wait SECONDS", "how long applications may take to be ready (default: 300)", type=float, default=300.0
)
_JOBS = arg("--address URL", "job endpoint of the cluster, as in http://127.0.0.1:8265: deploy from there")
_PRINT = flag("--print", "print the address instead of opening it, for a browser on another machine")


def register(commands: Commands) -> None:
    """Add the commands on the platform of this machine, and the one that opens its console."""
    add(commands, "up", _up, _PROJECTS, _CLOCK, _STORE, _REDIS, _PORT, _CPUS, _FIXED)
    add(commands, "down", _down, _CLUSTER)
    add(commands, "status", _status, _ENVIRONMENT)
    add(commands, "demo", _demo, _PROJECT, _REST)
    add(commands, "ui", _ui, _PRINT)


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
    except (ImportError, SyntaxError):
        from toque.functions.runtime.definitions import importing_project

        with importing_project(module):
            raise
    return 0


def _require(module: str) -> None:
    """Raises: UsageError if a project's module cannot be found from here; ProjectError if the package around it fails."""
    from toque.functions.runtime.definitions import importing_project

    find_project_here()
    with importing_project(module):
        there = find_spec(module)
    if there is None:
        raise UsageError(f"no module {module!r} in {Path.cwd()} or on PYTHONPATH: is the name right?")


def register_cluster(commands: Commands) -> None:
    """Add the commands on a cluster."""
    add(commands, "config", _config, _SERVE)
    nodes = group(commands, "node", "Start and drain the nodes of a cluster.")
    add(nodes, "start", _node_start, _HEAD, _ADDRESS, _TYPE, _BLOCK, _MORE)
    add(nodes, "drain", _node_drain, _WITHIN, _WHEN_TOLD)
    add(commands, "deploy", _deploy, _TOKEN_FILE, _TOKEN_SECRET, _NEW_TOKEN, _RESTART, _WAIT, _JOBS)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what is wrong with a profile, a cluster or its store into the command's error."""
    from toque.clusters.profile import ProfileError
    from toque.ray_apps.deployment.errors import DeploymentError
    from toque.registry.errors import RegistryError

    try:
        yield
    except ProfileError as error:
        raise UsageError(str(error)) from error
    except (DeploymentError, RegistryError) as error:
        raise Failed(str(error)) from error


def _config(given: Given) -> None:
    """Show every setting of the deployment profile, its variable, and where its value comes from."""
    from toque.clusters.profile import effective_profile, settings_of

    with explained():
        if given.serve:
            from toque.ray_apps.deployment.deploy import make_config

            find_project_here()
            value(make_config(effective_profile(os.environ)))
            return
        rows = [
            {"setting": each.name, "value": each.shown, "variable": each.variable.name, "source": each.source}
            for each in settings_of(os.environ)
        ]
        effective_profile(os.environ)  # after a value that cannot be is refused
    table(given.output, _SETTINGS, rows)


def _node_start(given: Given) -> int:
    """Start Ray on this machine as a node of a cluster, with the settings of the profile."""
    from toque.ray_apps.deployment.node import NodeStart, start_node

    with explained():
        node = NodeStart.parse(
            head=given.head,
            address=given.address,
            kind=given.type,
            block=given.block,
            more=given.rest[given.rest[:1] == ["--"] :],
        )
        return start_node(node, report=note)


def _node_drain(given: Given) -> None:
    """Move the replicas of this machine elsewhere, close its doors, and return when it may end."""
    from toque.ray_apps.deployment.draining import drain
    from toque.ray_apps.deployment.notices import wait_for_notice

    with explained():
        within_s = given.within
        if given.when_told:
            told = wait_for_notice(given.when_told)
            note(told.text)
            within_s = told.within_s
        drain(within_s or None, report=note)


def _deploy(given: Given) -> int:
    """Check the cluster, deploy the platform of the profile on it, and wait until it answers."""
    if given.address:
        return _deploy_from(given)
    if not os.environ.get("TOQUE_PROFILE") and Path(given.home, STATE_FILE).exists():
        return _deploy_here(given)
    from toque.ray_apps.deployment.deploy import deploy

    find_project_here()
    with explained():
        done = deploy(
            _token_place(given),
            new_token=given.new_token,
            restart=given.restart,
            wait_s=given.wait,
            report=note,
        )
    for line in (*(f"{each.check}: {each.found}" for each in done.checks), *done.notes):
        note(line)
    rows = [{"application": name, "state": state} for name, state in sorted(done.applications.items())]
    table(given.output, _DEPLOYED, rows, remark=f"it answers at {', '.join(done.doors)}")
    return 0


def _deploy_here(given: Given) -> int:
    """Add the models that were declared since `toque up` to the platform on this machine."""
    from toque.ray_apps.local import LocalError, Settings, up

    find_project_here()
    settings = Settings.of(os.environ, home=Path(given.home))
    os.environ.update(settings.ray_login())  # Ray reads them when it is first imported
    try:
        running = up(settings, report=note)
    except LocalError as error:
        raise Failed(str(error)) from error
    rows = [{"application": f"model {name}", "state": "RUNNING"} for name in running.models]
    table(given.output, _DEPLOYED, rows, remark=f"it answers at {running.url}")
    return 0


def _token_place(given: Given) -> TokenPlace:
    from toque.ray_apps.deployment.deploy import TokenFile, TokenSecret

    if given.token_secret:
        return TokenSecret(given.token_secret)
    return TokenFile(Path(given.token_file or ADMIN_FILE))


def _deploy_from(given: Given) -> int:
    """Submit the same command as a job of the cluster, and show what it prints until it ends."""
    from toque.ray_apps.deployment.remote import run_on_cluster

    options = {"--token-file": given.token_file, "--token-secret": given.token_secret, "--wait": given.wait}
    words = ["deploy", *(f"{name}={text}" for name, text in options.items() if text)]
    words += ["--restart"] if given.restart else []
    words += ["--new-token"] if given.new_token else []
    with explained():
        return run_on_cluster(given.address, f"toque {shlex.join(words)}", report=note)


def _ui(given: Given) -> None:
    """Open the console in a browser, signed in by a code that counts once."""
    made = given.client.send("POST", "/sign-in-codes").json()
    named = f"&next=/workspaces/{given.workspace}/ui/" if given.workspace else ""
    address = given.client.address(made["path"] + named)
    import webbrowser  # late: every other command would pay for it

    opened = not given.print and webbrowser.open(address)
    until = f"the code counts once, until {made['expires_at']}"
    message(given.output, f"opened {address}" if opened else f"{address}\n({until})", made | {"url": address})
