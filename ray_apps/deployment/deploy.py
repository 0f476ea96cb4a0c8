"""Deploys the platform of a profile on the connected cluster; done again it changes only what differs.

It ends once every node's door answers by HTTP and gRPC. The first administrator's token of a cluster is made once, and put into
a file or a Kubernetes secret.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import httpx

from toque.clusters.profile import Profile, effective_profile, require_settings, settings_of
from toque.ray_apps.config.applications import placements_of, release_of, serve_config
from toque.ray_apps.deployment.checks import Check, check_cluster
from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.local.state_file import write_private
from toque.registry import (
    EVERY_WORKSPACE,
    Access,
    AlreadyExists,
    NotFound,
    ObjectStore,
    Role,
    TokenRecord,
    utc_now,
)
from toque.registry.history import adopt_all
from toque.registry.times import to_text

READY_S = 300.0
DOORS_S = 30.0
NAME = "admin"
ACTOR = "toque-deploy"
_DOOR_TIMEOUT_S = 3.0
_ASK_S = 0.5
_FAILED = {"DEPLOY_FAILED"}  # one that is UNHEALTHY, as after the loss of a node, heals or times out
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deploy found and did.

    checks: before it; applications: state of each by name; doors: addresses at which the platform answers; notes: what
    a person should know, such as a change that needs a restart.
    """

    checks: list[Check]
    applications: dict[str, str]
    doors: list[str]
    notes: list[str]


def deploy(
    token: TokenPlace,
    *,
    new_token: bool = False,
    restart: bool = False,
    wait_s: float = READY_S,
    report: Report = lambda _: None,
) -> Deployed:
    """Check the cluster, make what the platform needs once, deploy every application, and wait until each answers.

    This process is connected to the cluster afterwards. token: where the first administrator's token goes; new_token:
    revoke it and make another. restart: replace every replica, also where nothing changed; the doors answer meanwhile.
    Raises: ProfileError; DeploymentError if a check fails, or an application or door is not ready within `wait_s`.
    """
    require_settings(os.environ)
    profile = effective_profile(os.environ)
    connect()
    from toque.functions.runtime.context import context_of  # late: it brings Ray in

    store = context_of(os.environ).store
    report("checking the cluster")
    before = running_options()
    wanted = () if before else (profile.ports.http, profile.ports.grpc)
    checks = check_cluster(store, doors=wanted)
    failed = [each for each in checks if not each.ok]
    if failed:
        raise DeploymentError("; ".join(f"{each.check}: {each.found}" for each in failed))
    notes = [ensure_first_token(store, token, renew=new_token), *prepare_store(store, profile)]
    notes += restarts_needed(profile, before)
    config = make_config(profile, restart=restart)
    report(f"deploying {len(config['applications'])} applications")
    apply(config)
    begun = time.monotonic()
    states = wait_ready({each["name"] for each in config["applications"]}, wait_s, report)
    doors = door_addresses(profile)
    wait_open(doors, profile, max(DOORS_S, wait_s - (time.monotonic() - begun)))
    return Deployed(checks, states, [f"http://{each}:{profile.ports.http}" for each in doors], notes)


def connect() -> None:
    """Connect this process to the cluster it is on, or that RAY_ADDRESS names. Raises: DeploymentError."""
    import ray  # late: its variables must be set first

    if ray.is_initialized():
        return
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", namespace="toque", log_to_driver=False)
    except ConnectionError as error:
        raise DeploymentError(
            "no cluster is here; start one with `toque node start --head`, or give --address of its job endpoint"
        ) from error


def prepare_store(store: ObjectStore, profile: Profile) -> list[str]:
    """Create the workspaces of the profile and of its projects, and take the store under the audit keys.

    Returns what was done, in words.
    """
    from toque.functions.runtime.context import projects_of  # late: it brings Ray in

    notes = []
    if store.audit_keys:
        adopt_all(store, utc_now)
    access = Access(store, actor=ACTOR)
    known = {each.name for each in access.list_workspaces()}
    project = {each.name: each.value for each in settings_of(os.environ)}["project"]
    for name in dict.fromkeys((*projects_of(project), *profile.workspaces)):
        if name not in known:
            with suppress(AlreadyExists):  # somebody made it just now
                access.create_workspace(name)
                notes.append(f"workspace {name}: created")
    return notes


def make_config(profile: Profile, *, restart: bool = False) -> dict[str, Any]:
    """Make Serve's config of this process's profile and project. restart: as a new release."""
    settings = settings_of(os.environ)
    project = next(each.value for each in settings if each.name == "project")
    release = release_of(settings, _folders_of(project))
    release = f"{release}-{time.time_ns()}" if restart else release
    return serve_config(profile, placements_of(project), release)


def _folders_of(project: str) -> list[Path]:
    """List the folders of the projects' packages, or their files."""
    from toque.functions.runtime.context import projects_of  # late: as above

    found = []
    for module in projects_of(project).values():
        spec = find_spec(module)
        if spec is not None and spec.origin:
            file = Path(spec.origin)
            found.append(file.parent if file.name == "__init__.py" else file)
    return found


def running_options() -> dict[str, Any] | None:
    """Read the options that Serve's doors run with; None if Serve does not run."""
    details = serve_details()
    return None if details is None else dict(details["http_options"])


def serve_details() -> dict[str, Any] | None:
    """Read what Serve says of itself and of its applications; None if it does not run."""
    from ray.serve.context import _get_global_client  # late: as above

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else dict(client.get_serve_details())


def restarts_needed(profile: Profile, running: dict[str, Any] | None) -> list[str]:
    """Say which settings of the profile take effect only when Serve is started anew."""
    wanted = {"host": profile.bind, "port": profile.ports.http}
    if running is None:
        return []
    names = {"host": "bind", "port": "ports.http"}
    return [
        f"{names[name]}: Serve runs with {running[name]!r}; {value!r} needs `toque down --cluster` and `toque deploy`, "
        "and the doors are shut meanwhile"
        for name, value in wanted.items()
        if running.get(name) != value
    ]


def apply(config: dict[str, Any]) -> None:
    """Hand Serve its config; what it does not name any more is removed, what is equal stays as it is."""
    from ray.serve.schema import ServeDeploySchema

    from toque.clusters.ray_private import serve_start

    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        grpc_options=schema.grpc_options.model_dump(),
        proxy_location=schema.proxy_location,
        global_logging_config=schema.logging_config,
    )
    client.deploy_apps(schema)


def wait_ready(names: set[str], wait_s: float, report: Report = lambda _: None) -> dict[str, str]:
    """Wait until every application runs; returns the state of each. Raises: DeploymentError with what Serve says."""
    deadline = time.monotonic() + wait_s
    shown: set[str] = set()
    while True:
        applications = (serve_details() or {}).get("applications", {})
        states = {name: _state(applications.get(name)) for name in names}
        waiting = sorted(name for name, state in states.items() if state != "RUNNING")
        if not waiting:
            return states
        for name in names - set(waiting) - shown:
            report(f"{name} runs")
            shown.add(name)
        failed = [name for name in waiting if states[name] in _FAILED]
        if failed or time.monotonic() > deadline:
            why = "; ".join(
                f"{name}: {states[name]} {applications.get(name, {}).get('message', '')}"
                for name in failed or waiting
            )
            raise DeploymentError(f"not ready after {wait_s - (deadline - time.monotonic()):.0f} s: {why}")
        time.sleep(_ASK_S)


def _state(application: dict[str, Any] | None) -> str:
    """Name an application's state, which Serve gives as a member of an enum or as its value."""
    status = (application or {}).get("status", "MISSING")
    return str(getattr(status, "value", status))


def shut_down() -> bool:
    """End Serve and every application of the connected cluster; whether it ran. Store, Redis and nodes stay."""
    connect()
    if serve_details() is None:
        return False
    from ray import serve  # late: as above

    serve.shutdown()  # type: ignore[no-untyped-call]
    return True


def door_addresses(profile: Profile) -> list[str]:
    """List the addresses of the connected cluster's living nodes that answer clients."""
    import ray  # late: its variables must be set first

    nodes = [each for each in ray.nodes() if each["Alive"] and "door" in each["Resources"]]  # type: ignore[no-untyped-call]
    if profile.bind in {"127.0.0.1", "localhost"}:
        return ["127.0.0.1"]
    return sorted(each["NodeManagerAddress"] for each in nodes)


def wait_open(
    addresses: Iterable[str],
    profile: Profile,
    wait_s: float,
    *,
    shut: Callable[[str, Profile], str] | None = None,
) -> None:
    """Wait until each door answers. shut: why one does not, "" if it does; for tests.

    Raises: DeploymentError naming the doors that do not within `wait_s`, and why.
    """
    why_shut = shut or why_not
    deadline = time.monotonic() + wait_s
    waiting = list(addresses)
    while True:
        reasons = {address: reason for address in waiting if (reason := why_shut(address, profile))}
        if not reasons:
            return
        if time.monotonic() > deadline:
            raise DeploymentError(
                "; ".join(f"door of {address}: {reason}" for address, reason in reasons.items())
            )
        waiting = list(reasons)
        time.sleep(_ASK_S)


def why_not(address: str, profile: Profile) -> str:
    """Say why a node's door does not answer by HTTP or gRPC, or "" if it does both."""
    url = f"http://{address}:{profile.ports.http}/-/healthz"
    try:
        with urllib.request.urlopen(url, timeout=_DOOR_TIMEOUT_S):  # our own node
            pass
        with socket.create_connection((address, profile.ports.grpc), timeout=_DOOR_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except OSError as error:
        return f"{error} at {profile.ports.http} (HTTP) or {profile.ports.grpc} (gRPC)"


class TokenPlace(Protocol):
    """Where the token is kept; `where` names it for a person."""

    @property
    def where(self) -> str:
        """Name of the place, for a person."""
        ...

    def read(self) -> str:
        """Read the token, or "" if there is none. Raises: DeploymentError."""
        ...

    def write(self, token: str) -> None:
        """Keep the token, readable by its owner only. Raises: DeploymentError."""
        ...


def ensure_first_token(store: ObjectStore, place: TokenPlace, *, renew: bool = False) -> str:
    """Make the administrator's token unless there is one; returns what came of it, in words.

    A platform that has another administrator's token already gets none. Killed before the token is kept, the next call
    revokes it and makes another, as nobody can know its secret. One that was used is known to somebody: it stays, though
    the place lacks it, as that of a head which replaces a lost one does.

    renew: revoke the token and make another all the same, for who lost its secret; a place that cannot be written leaves the old one.
    Raises: DeploymentError if the place has the token of another platform.
    """
    access = Access(store, actor=ACTOR)
    kept = place.read()
    if kept and access.verify(kept) and not renew:
        return f"admin token: in {place.where}"
    known = access.list_tokens()
    if kept and all(each.name != NAME for each in known):
        raise DeploymentError(
            f"{place.where} has a token that this platform does not know; move it away, or name another place"
        )
    now = utc_now()
    admins = [each for each in known if each.is_live(now) and _is_admin(each)]
    others = [each.name for each in admins if each.name != NAME]
    if others and not renew:
        return f"admin token: none made, as {', '.join(others[:3])} can make tokens"
    used = [each.last_used_at for each in admins if each.name == NAME and each.last_used_at]
    if used and not renew:
        return (
            f"admin token: made before and last used {to_text(used[0])}, so none was made, and {place.where} has none; "
            "who lost its secret gets another by `toque deploy --new-token`, which revokes that one"
        )
    if renew:
        place.write(
            kept
        )  # a place that cannot be written, as for want of rights, ends this before the old token does
    with suppress(NotFound):  # usually there is no such token
        access.revoke(NAME)
    place.write(access.create_token(NAME, "admin", workspace=EVERY_WORKSPACE))
    return f"admin token: made, in {place.where}"


def _is_admin(token: TokenRecord) -> bool:
    return any(each.allows(Role.admin, EVERY_WORKSPACE) for each in token.grants)


class TokenFile:
    """A file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser()

    @property
    def where(self) -> str:
        """Path of the file, without `~`."""
        return str(self._path)

    def read(self) -> str:
        """Read the token, or "" if there is no file."""
        return self._path.read_text().strip() if self._path.exists() else ""

    def write(self, token: str) -> None:
        """Write the file atomically with mode 0600."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path, token)


class TokenSecret:
    """The key `token` of a Kubernetes secret in this pod's namespace, through the API server by the pod's account."""

    def __init__(
        self, name: str, *, account: Path = _ACCOUNT, server: str = "https://kubernetes.default.svc"
    ) -> None:
        self._name, self._account, self._server = name, account, server

    @property
    def where(self) -> str:
        """Kind and name of the secret."""
        return f"secret {self._name}"

    def read(self) -> str:
        """Read the token, or "" if there is no such secret. Raises: DeploymentError."""
        response = self._ask("GET", f"/{self._name}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return ""
        found = self._accepted(response, "read it").json()
        return base64.b64decode(found.get("data", {}).get("token", "")).decode().strip()

    def write(self, token: str) -> None:
        """Create the secret, or replace what it holds. Raises: DeploymentError."""
        data = {"token": base64.b64encode(token.encode()).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self._name}, "data": data}
        response = self._ask("POST", "", body)
        if response.status_code == httpx.codes.CONFLICT:
            response = self._ask("PUT", f"/{self._name}", body)
        self._accepted(response, "create and update it")

    def _accepted(self, response: httpx.Response, what: str) -> httpx.Response:
        if response.is_success:
            return response
        raise DeploymentError(
            f"{self.where}: the API server answers {response.status_code} {response.reason_phrase}; may the pod's account {what}?"
        )

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        namespace, token = ((self._account / name).read_text().strip() for name in ("namespace", "token"))
        url = f"{self._server}/api/v1/namespaces/{namespace}/secrets{path}"
        headers = {"Authorization": f"Bearer {token}"}
        https = self._server.startswith("https")
        verify = ssl.create_default_context(cafile=str(self._account / "ca.crt")) if https else True
        try:
            return httpx.request(method, url, json=body, headers=headers, verify=verify, timeout=10)
        except httpx.TransportError as error:
            raise DeploymentError(f"{self.where}: the API server does not answer: {error}") from error
