"""Settings of the platform on this machine, and the choice of its ports.

They come from arguments, the environment and the cluster file. Where a port is taken, its holder is named.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from toque.clusters.redis_clients import redis_url_of
from toque.ray_apps.local.errors import PortTaken
from toque.ray_apps.local.processes import Process
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.serve.settings import loopback_environment

HOME = ".toque"
CLUSTER_FILE = Path(__file__).resolve().parents[2] / "clusters" / "local.yaml"
MEBIBYTE = 1024 * 1024
_PORTS = {"http": "TOQUE_HTTP_PORT", "grpc": "TOQUE_GRPC_PORT"}  # those that profiles name
LISTENING = "0A"  # state of a listening socket in /proc/net/tcp
TRIED_ABOVE = 200  # ports, from a taken one on


class Ports(BaseModel):
    """Wanted ports; a taken one is replaced by the next free one unless `Settings.fixed_ports`.

    http: the platform's API and models; grpc: models by gRPC; jobs: the job endpoint; redis; gcs, agent: Ray's own;
    stats, metrics: HAProxy's; door_metrics: metrics of the job endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    http: int = Field(default=8000, ge=1, le=65535)
    grpc: int = Field(default=8001, ge=1, le=65535)
    jobs: int = Field(default=8265, ge=1, le=65535)
    redis: int = Field(default=6389, ge=1, le=65535)
    gcs: int = Field(default=6399, ge=1, le=65535)
    agent: int = Field(default=52365, ge=1, le=65535)
    stats: int = Field(default=8404, ge=1, le=65535)
    metrics: int = Field(default=9101, ge=1, le=65535)
    door_metrics: int = Field(default=44227, ge=1, le=65535)


def _parsed_oidc(value: Any) -> Any:
    return OidcSettings.parse(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """Settings to start the platform with.

    home: state folder (store, Redis data, tokens, state file); store_url: by default the folder `store` in `home`;
    audit_key_file: by default `keys/audit` in `home`;
    redis_url: None starts an embedded Redis; project: module of the user's definitions; oidc: issuer whose
    tokens are accepted, too; clock: "system", or "replay"
    for a driver that sets the time; generative: replicas of the door of language models; host: address to listen on; num_cpus: CPUs for Ray; object_store_bytes: Ray's
    shared memory; start_timeout_s: for each part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path(HOME)
    store_url: str = ""
    audit_key_file: Path = Path()
    redis_url: str | None = None
    project: str | None = None
    oidc: Annotated[OidcSettings | None, BeforeValidator(_parsed_oidc)] = None
    clock: Literal["system", "replay"] = "system"
    generative: int = Field(default=0, ge=0)
    host: str = "127.0.0.1"
    ports: Ports = Ports()
    fixed_ports: bool = False
    num_cpus: int = Field(default_factory=lambda: max(2, os.cpu_count() or 1), ge=1)
    object_store_bytes: int = Field(default=512 * MEBIBYTE, ge=80 * MEBIBYTE)
    start_timeout_s: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        home = self.home.expanduser().resolve()
        object.__setattr__(self, "home", home)
        object.__setattr__(self, "store_url", self.store_url or f"file://{home / 'store'}")
        key_file = home / "keys" / "audit" if self.audit_key_file == Path() else self.audit_key_file
        object.__setattr__(self, "audit_key_file", key_file.expanduser().resolve())
        return self

    @classmethod
    def of(cls, environment: Mapping[str, str], **chosen: Any) -> Self:
        """Read settings from `metadata.toque` of the cluster file and `TOQUE_*` variables.

        chosen: overrides the environment, which overrides the file; None counts as not given. ports: those that
        differ, by purpose. The file is `TOQUE_CLUSTER`, by default `clusters/local.yaml` beside our packages.
        Raises: pydantic.ValidationError, naming the field.
        """
        names = {
            "home": "TOQUE_HOME",
            "store_url": "TOQUE_STORE",
            "audit_key_file": "TOQUE_AUDIT_KEY_FILE",
            "project": "TOQUE_PROJECT",
            "oidc": "TOQUE_OIDC",
            "clock": "TOQUE_CLOCK",
            "generative": "TOQUE_GENERATIVE_REPLICAS",
        }
        from_file = _cluster_settings(Path(environment.get("TOQUE_CLUSTER") or CLUSTER_FILE))
        from_environment = {
            field: environment[name] for field, name in names.items() if environment.get(name)
        }
        if redis_url := redis_url_of(environment):
            from_environment["redis_url"] = redis_url
        wanted = {field: value for field, value in chosen.items() if value is not None}
        ports_of_environment = {
            purpose: environment[name] for purpose, name in _PORTS.items() if environment.get(name)
        }
        ports = from_file.get("ports", {}) | ports_of_environment | wanted.pop("ports", {})
        return cls(**(from_file | from_environment | wanted | {"ports": ports}))

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches the platform's address."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"

    @property
    def redis_folder(self) -> Path:
        """Folder of the embedded Redis's data, password and log."""
        return self.home / "redis"

    @property
    def token_file(self) -> Path:
        """File with the administrator's bearer token."""
        return self.home / "token"

    @property
    def ray_token_file(self) -> Path:
        """File with the token that Ray's processes and clients require of each other."""
        return self.home / "ray_token"

    def ray_login(self) -> dict[str, str]:
        """List the variables by which Ray's processes and clients find and authenticate each other.

        Ray reads them when it is imported: set them before anything that may bring it in.
        """
        login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.ray_token_file)}
        return login | (loopback_environment() if self.on_loopback else {})


def _cluster_settings(file: Path) -> dict[str, Any]:
    """Read the settings for `toque up` from a cluster file; empty if there is no such file."""
    if not file.exists():
        return {}
    content: dict[str, Any] = (yaml.safe_load(file.read_text()).get("metadata") or {}).get("toque") or {}
    return content


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that listens on a port; pid is None if the process belongs to another user."""

    port: int
    pid: int | None
    command: str

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"{self.command} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class PortChange:
    """Replacement of a port that was taken: its purpose, its holder, and the port used instead."""

    purpose: str
    holder: PortHolder
    port: int

    def __str__(self) -> str:
        return f"port {self.holder.port} ({self.purpose}) is held by {self.holder}; using {self.port}"


def choose_ports(
    wanted: Ports,
    *,
    host: str,
    fixed: bool = False,
    holder: Callable[[int, str], PortHolder | None] | None = None,
) -> tuple[Ports, list[PortChange]]:
    """Choose a free port for every purpose: the wanted one, or the next free port above it.

    fixed: refuse instead of taking another port. holder: finds the holder of a port (for tests).
    Raises: PortTaken, naming port, purpose and holder.
    """
    ask = holder or find_holder
    chosen: dict[str, int] = {}
    moved: list[PortChange] = []
    for purpose, port in wanted.model_dump().items():
        held = ask(port, host)
        if held is None and port in chosen.values():
            held = PortHolder(port, os.getpid(), "another part of this platform")
        if held is not None and fixed:
            raise PortTaken(
                f"port {port} ({purpose}) is held by {held}; end it, or let another port be taken"
            )
        chosen[purpose] = port if held is None else _next_free(port, set(chosen.values()), host, ask)
        if held is not None:
            moved.append(PortChange(purpose, held, chosen[purpose]))
    return Ports(**chosen), moved


def find_holder(port: int, host: str = "127.0.0.1") -> PortHolder | None:
    """Find the process that listens on `port` at `host` or at every address; None if the port is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return _listener(port)
    return None


def _next_free(port: int, taken: set[int], host: str, ask: Callable[[int, str], PortHolder | None]) -> int:
    for candidate in range(port + 1, min(port + TRIED_ABOVE, 65536)):
        if candidate not in taken and ask(candidate, host) is None:
            return candidate
    raise PortTaken(
        f"no free port from {port} to {port + TRIED_ABOVE}; end something or choose another range"
    )


def _listener(port: int) -> PortHolder:
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        if sockets & open_sockets(folder) and (found := Process.find(int(folder.name))) is not None:
            return PortHolder(port, found.pid, found.command[:120])
    return PortHolder(port, None, "")


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def open_sockets(folder: Path) -> set[str]:
    """List the open files of a process, sockets as `socket:[inode]`. folder: of the process in /proc."""
    links = set()
    try:
        for entry in os.scandir(folder / "fd"):
            links.add(os.readlink(entry.path))  # noqa: PTH115  # thousands of links: Path objects would be slow
    except OSError:
        return links  # the process ended, or belongs to another user: return what was read so far
    return links
