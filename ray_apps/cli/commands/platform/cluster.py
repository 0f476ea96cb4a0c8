"""`toque config`, `toque node` and `toque deploy`: the platform on a cluster."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toque.ray_apps.cli.arguments import arg, flag
from toque.ray_apps.cli.client import STATE_FILE
from toque.ray_apps.cli.command import Commands, Given, add, find_project_here, group
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import columns, note, table, value

if TYPE_CHECKING:
    from toque.ray_apps.deployment.first_token import TokenPlace

# toque.ray_apps.deployment is imported by the commands that need it: it brings Ray, or the store.

_SETTINGS = columns("setting | value | variable | from: source")
_DEPLOYED = columns("application | state")
ADMIN_FILE = "~/.toque/token"

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


def register(commands: Commands) -> None:
    """Add the commands of this module."""
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
    from toque.ray_apps.deployment.first_token import TokenFile, TokenSecret

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
