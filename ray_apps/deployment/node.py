"""Starts Ray on a node of a cluster, with the settings of the deployment profile.

What `ray start` needs beside its own options comes from here, so that every node of a cluster has it alike: the
profile's variables, Serve behind HAProxy, the node's type with the resources and the label that go with it, and for the
head a Redis in which what it knows outlives it. A slice of a card (MIG) is a GPU of Ray's, of a type that names card and profile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.parse import unquote, urlsplit

import toque
from toque.clusters.profile import Profile, ProfileError, apply_profile, effective_profile, require_settings
from toque.clusters.ray_private import NvidiaGPUAcceleratorManager
from toque.functions.runtime.cards import SLICED, SLICED_VALUE, Device, devices
from toque.functions.runtime.run.cluster import CARD
from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.deployment.node_types import autoscaling_file
from toque.ray_apps.deployment.start_ray import PASSWORD
from toque.ray_apps.local.processes import ProcessSession, end_sessions
from toque.ray_apps.serve.settings import HAPROXY, cluster_settings, serve_settings

VISIBLE = "CUDA_VISIBLE_DEVICES"
ROOT = Path(toque.__file__).resolve().parents[1]  # the folder that has the package
PORT = 6379
ATTEMPTS = 4
PAUSE_S, GRACE_S = 5.0, 3.0
NODE_PORTS = {
    "object-manager-port": 8076,
    "dashboard-agent-grpc-port": 8078,
    "runtime-env-agent-port": 8079,
    "metrics-export-port": 8080,
    "dashboard-agent-listen-port": 52365,
    "min-worker-port": 10002,
    "max-worker-port": 19999,
}
"""Ports of Ray on every node, by option of `ray start`; a port that is said need not be waited for, and can be let
through a firewall (docs/high-availability.md). The raylet's own differs from start to start: asked at the same address
and port, a machine that came back would answer for the node that it was before, which then would never count as lost."""
_PASSWORD_OPTION = "--redis-password="  # noqa: S105  # Ray's option
SERVE, DOOR = "serve", "door"
GROUP_LABEL = "ray.io/node-group"  # Ray's own: by default the type's name in RAY_NODE_TYPE_NAME
_MANY = 1000  # replicas ask for a thousandth each
_TOLD_WITHIN_S = 60.0
_EARLY_S = 90.0  # a head that ends sooner did not start
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NodeStart:
    """What a node is to be.

    head: address of the cluster's head, as in `10.0.0.4`, or with its port; None: this node is the head. type: of the
    node, as in `serve`, `cpu` or `gpu`; replicas go to `serve`, experiments to the others. block: stay until Ray ends.
    more: further arguments of `ray start`.
    """

    head: str | None
    type: str
    block: bool = False
    more: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        *,
        head: bool,
        address: str | None,
        kind: str | None,
        block: bool,
        more: Sequence[str],
    ) -> NodeStart:
        """Read the arguments of `toque node start`, of which kind is the type; `more` may be a whole `ray start` command, as KubeRay makes it.

        Raises: DeploymentError naming what is missing.
        """
        rest = list(more)
        if rest[:2] == ["ray", "start"]:
            rest = rest[2:]
        found, kept = {"--head": head, "--block": block}, []
        for argument in rest:
            if argument in found:
                found[argument] = True
            elif argument.startswith("--address="):
                address = argument.partition("=")[2]
            else:
                kept.append(argument)
        if found["--head"] == bool(address):
            raise DeploymentError("say either --head, or --address HOST[:PORT] of the head")
        type_ = kind or os.environ.get("RAY_NODE_TYPE_NAME") or ("head" if found["--head"] else "")
        if not type_:
            raise DeploymentError("--type: say what the node is for, as in serve, cpu or gpu")
        return cls(None if found["--head"] else address, type_, block=found["--block"], more=tuple(kept))

    @property
    def is_head(self) -> bool:
        """Whether the node is the cluster's head."""
        return self.head is None


def start_node(node: NodeStart, *, report: Report = lambda _: None) -> int:
    """Start Ray on this machine as `node` says; returns the exit code of a `ray start` that blocked, else 0.

    A raylet gives its agent 15 s to start, which on a machine that is busy with other starts is too little; so it is
    tried again, after what is left of the attempt was ended.
    Raises: ProfileError, naming what the profile lacks; DeploymentError if Ray does not start, or this machine's cards are cut
    into slices of several kinds.
    """
    environment = node_environment(node, os.environ)
    cut = card_slices(environment.get(VISIBLE))
    environment |= cut.environment
    command = ray_start(node, effective_profile(environment), environment, slices=cut)
    for attempt in range(1, ATTEMPTS + 1):
        begun = time.monotonic()
        code = _run(command, environment)
        if code == 0 or (node.block and time.monotonic() - begun > _EARLY_S):
            if code == 0 and node.is_head and not node.block:
                _report_node_types(command, environment, report)
            return code
        if attempt == ATTEMPTS:
            break
        report(
            f"Ray did not start (exit code {code}); a raylet gives its agent 15 s, too little on a busy machine: "
            f"trying again, {attempt} of {ATTEMPTS - 1}"
        )
        time.sleep(PAUSE_S)
    raise DeploymentError(f"`ray start` ended with exit code {code}; what it printed says why")


def _report_node_types(command: Sequence[str], environment: Mapping[str, str], report: Report) -> None:
    """Tell the cluster what its autoscaler may start; a head without an autoscaler, or that cannot be told, goes on."""
    file = autoscaling_file(command)
    if file is None:
        return
    port = next((each.partition("=")[2] for each in command if each.startswith("--port=")), str(PORT))
    told = subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-m", "toque.ray_apps.deployment.node_types", str(file), f"127.0.0.1:{port}"],
        env=dict(environment),
        check=False,
        timeout=_TOLD_WITHIN_S,
    )
    if told.returncode != 0:
        report(
            f"the cluster was not told of the node types in {file}: work that no type could hold waits for ever"
        )


def node_environment(node: NodeStart, inherited: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a node's processes. Raises: ProfileError, naming what is missing."""
    environment = dict(inherited)
    apply_profile(environment)
    require_settings(environment)
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY),
        "RAY_NODE_TYPE_NAME": node.type,
    }
    node_loss = effective_profile(environment).node_loss
    environment = serve_settings() | cluster_settings(node_loss, is_head=node.is_head) | ours | environment
    if node.is_head:
        profile = effective_profile(environment)
        environment = _head_memory(profile) | environment
        said = [argument.partition("=")[2] for argument in node.more if argument.startswith(_PASSWORD_OPTION)]
        password = said[-1] if said else _password(profile) if "RAY_REDIS_ADDRESS" in environment else ""
        if password:
            environment[PASSWORD] = password  # a command line is for every user of the machine to read
    for name, first in (("PYTHONPATH", str(ROOT)), ("PATH", str(Path(sys.executable).parent))):
        places = [first, *environment.get(name, "").split(os.pathsep)]
        environment[name] = os.pathsep.join(dict.fromkeys(place for place in places if place))
    return environment


@dataclass(frozen=True, slots=True)
class CardSlices:
    """Labels and variables of a node that has slices for cards, and options of `ray start`; empty for one with whole cards, or without any."""

    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)


WHOLE_CARDS = CardSlices()


def card_slices(visible: str | None) -> CardSlices:
    """Find the slices that a node of this machine offers.

    visible: cards and slices that it may use, as CUDA_VISIBLE_DEVICES has them; None: all.
    Raises: DeploymentError if they are of several kinds, between which Ray could not choose.
    """
    names = None if visible is None else set(visible.split(","))
    offered = [each for each in devices() if names is None or each.uuid in names]
    if not any(each.profile for each in offered):
        return WHOLE_CARDS
    kinds = {_kind(each) for each in offered}
    if len(kinds) > 1:
        raise DeploymentError(
            f"this machine's cards are cut into {', '.join(sorted(kinds))}: name those of one kind in {VISIBLE} by UUID, as "
            "`nvidia-smi -L` lists them, and start another node for the others"
        )
    card = f"{NvidiaGPUAcceleratorManager.get_current_node_accelerator_type() or 'GPU'}-{kinds.pop()}"
    return CardSlices(
        {CARD: card, SLICED: SLICED_VALUE},
        {VISIBLE: ",".join(each.uuid for each in offered)},
        {"num-gpus": len(offered)},  # Ray itself would count the cards
    )


def _kind(device: Device) -> str:
    return device.profile or "whole cards"


def ray_start(
    node: NodeStart, profile: Profile, environment: Mapping[str, str], *, slices: CardSlices = WHOLE_CARDS
) -> list[str]:
    """Build the `ray start` command of a node; arguments that `node.more` has are not said twice. slices: that it has for cards."""
    options: dict[str, object] = dict(NODE_PORTS)
    if node.is_head:
        options |= {"port": PORT, "dashboard-host": "127.0.0.1"}
        options |= {} if node.type == SERVE else {"num-cpus": 0}  # it schedules; tasks cannot take it down
        if "RAY_REDIS_ADDRESS" in environment:
            url = urlsplit(profile.redis.head_url or profile.redis.url)
            options |= {"redis-username": unquote(url.username)} if url.username else {}
    else:
        address = str(node.head)
        options["address"] = address if ":" in address else f"{address}:{PORT}"
    given, more = _resources_in(node.more)
    if resources := node_resources(node) | given:
        options["resources"] = json.dumps(resources)
    options |= slices.options
    # The autoscaler's name for a type stays what it is.
    named = environment.get("RAY_NODE_TYPE_NAME") == node.type
    if labels := ({} if named else {GROUP_LABEL: node.type}) | dict(slices.labels):
        options["labels"] = ",".join(f"{key}={value}" for key, value in labels.items())
    more = [
        argument
        for argument in more
        if not (PASSWORD in environment and argument.startswith(_PASSWORD_OPTION))
    ]
    said = {argument.partition("=")[0] for argument in more}
    flags = [f"--{name}={value}" for name, value in options.items() if f"--{name}" not in said]
    fixed = ["--head"] * node.is_head + ["--block"] * node.block + ["--disable-usage-stats"] * node.is_head
    program = "toque.ray_apps.deployment.start_ray" if PASSWORD in environment else "ray.scripts.scripts"
    return [sys.executable, "-m", program, "start", *fixed, *flags, *more]


def node_resources(node: NodeStart) -> dict[str, int]:
    """List the resources that Ray counts on a node for its type: `serve` takes replicas, `door` answers clients."""
    serves = {SERVE: _MANY} if node.type == SERVE else {}
    return serves | ({DOOR: _MANY} if serves or node.is_head else {})


def _resources_in(more: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Split further arguments into the resources they say and the rest. Raises: DeploymentError if these are no JSON."""
    found: dict[str, int] = {}
    kept = []
    for argument in more:
        name, _, text = argument.partition("=")
        if name != "--resources":
            kept.append(argument)
            continue
        try:
            found |= json.loads(text.strip("'\""))
        except ValueError as error:
            raise DeploymentError(f"{argument}: want JSON, as in --resources='{{\"serve\": 1}}'") from error
    return found, kept


def _head_memory(profile: Profile) -> dict[str, str]:
    """List the variables that let what the head knows outlive it, in Redis.

    Raises: ProfileError if that Redis is one that Ray cannot use.
    """
    name, url = (
        ("redis.head_url", profile.redis.head_url)
        if profile.redis.head_url
        else ("redis.url", profile.redis.url)
    )
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
        raise ProfileError(
            f"{name}: the head keeps what it knows in a single Redis, not {parts.scheme}://; name one in redis.head_url"
        )
    tls = "rediss://" if parts.scheme == "rediss" else ""
    return {
        "RAY_REDIS_ADDRESS": f"{tls}{parts.hostname}:{parts.port or PORT}",
        "RAY_external_storage_namespace": profile.cluster,
    }


def _password(profile: Profile) -> str:
    """Find the password of the head's Redis."""
    url = urlsplit(profile.redis.head_url or profile.redis.url)
    if url.password:
        return unquote(url.password)
    file = profile.redis.password_file
    return Path(file).read_text().strip() if file and not profile.redis.head_url else ""


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, and pass on signals that ask this process to end.

    If it fails, whatever it started ends too, which would keep the ports from the next attempt.
    """
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)  # noqa: S603  # our own program
    session = ProcessSession.led_by(process.pid)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
        if code != 0:
            end_sessions([session], grace_s=GRACE_S)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
