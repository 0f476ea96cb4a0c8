"""Checks which parts of the platform in a state folder answer."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError

from toque.clusters.redis_clients import RedisAddress, open_redis
from toque.ray_apps.leader_lease import RedisLease
from toque.ray_apps.local import jobs, processes, redis_server, state_file
from toque.ray_apps.local.state_file import RunningPlatform

DAEMONS = ("gcs_server", "raylet")  # a cluster needs both of them


class PartStatus(BaseModel):
    """Status of one part of the platform: whether it answers, and where."""

    model_config = ConfigDict(frozen=True)

    name: str
    up: bool
    where: str


class Status(BaseModel):
    """Status of a platform: its parts and number of processes; no parts if nothing was started. logs: folder of Ray's logs."""

    model_config = ConfigDict(frozen=True)

    home: Path
    parts: tuple[PartStatus, ...] = ()
    processes: int = 0
    logs: Path | None = None
    running: RunningPlatform | None = None

    @property
    def healthy(self) -> bool:
        """Whether the start is complete and every part answers."""
        return (
            bool(self.parts)
            and all(part.up for part in self.parts)
            and bool(self.running and self.running.ready)
        )


def status(home: Path) -> Status:
    """Check every part of the platform in `home`, which takes milliseconds if all answer."""
    home = home.expanduser().resolve()
    running = state_file.find_platform(home)
    if running is None or running.boot != state_file.boot_id():
        return Status(home=home, processes=len(processes.of_platform(home, ())))
    found = processes.of_platform(home, running.sessions.values())
    commands = [each.command for each in found]
    parts = (
        _redis(running),
        PartStatus(
            name="ray",
            up=all(any(f"/{daemon} " in each for each in commands) for daemon in DAEMONS),
            where=running.ray_address,
        ),
        PartStatus(name="jobs", up=jobs.answers(running), where=running.jobs_url),
        PartStatus(
            name="grpc", up=_listens(running.settings.host, running.ports.grpc), where=running.grpc_address
        ),
        PartStatus(name="gateway", up=_answers(f"{running.url}/healthz"), where=running.url),
        PartStatus(
            name="ticker", up=any("ServeReplica:ticker" in each for each in commands), where=_leader(running)
        ),
        *_doors(running, commands),
        *(
            PartStatus(
                name=f"model {name}",
                up=_answers(f"{running.model_url(name)}/ready", alive=True),
                where=running.model_url(name),
            )
            for name in running.models
        ),
    )
    logs = running.ray_folder / "session_latest" / "logs"
    return Status(home=home, parts=parts, processes=len(found), logs=logs, running=running)


def _doors(running: RunningPlatform, commands: list[str]) -> Iterator[PartStatus]:
    """Check what only some platforms have: consumers of streams, and the door of language models."""
    if running.streams:
        up = any("ServeReplica:streams" in each for each in commands)
        yield PartStatus(name="streams", up=up, where="consumers of the projects' streams")
    if running.settings.generative:
        url = f"{running.url}/v1"
        yield PartStatus(name="language models", up=_answers(f"{url}/models", alive=True), where=url)


def _redis(running: RunningPlatform) -> PartStatus:
    """Check Redis; where it is and, if it answers, which version of which program."""
    address = RedisAddress.of(running.redis_url).where
    with _asking(running) as client:
        try:
            up = redis_server.answers(client)
            where = f"{address} ({redis_server.describe(client)})" if up else address
        except RedisError:
            up, where = False, address
    return PartStatus(name="redis", up=up, where=where)


def _leader(running: RunningPlatform) -> str:
    """Which process leads the tickers, in words; a ticker takes some seconds after its start to do so."""
    with _asking(running) as client:
        try:
            leader = RedisLease(client, "ticker", "").leader()
        except RedisError:
            return "who leads is not known while Redis is away"
    return f"{leader.rpartition('/')[0]} leads" if leader else "none leads yet"


@contextmanager
def _asking(running: RunningPlatform) -> Iterator[Any]:
    """A client of the platform's Redis that waits for nothing."""
    client = open_redis(running.redis_url, connect_timeout_s=1.0, timeout_s=2.0, patience_s=0.0)
    try:
        yield client
    finally:
        client.close()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _answers(url: str, *, alive: bool = False) -> bool:
    """Whether `url` answers with success; with `alive`, also any error in JSON, which only the application sends."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # our own http address
            return bool(response.status < 300)  # noqa: PLR2004  # success
    except urllib.error.HTTPError as error:
        return alive and _is_json(error)
    except (urllib.error.URLError, OSError):
        return False


def _is_json(error: urllib.error.HTTPError) -> bool:
    try:
        json.loads(error.read())
    except ValueError:
        return False
    return True
