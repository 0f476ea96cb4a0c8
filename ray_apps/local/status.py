"""How the platform in a state folder is doing."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import redis
from pydantic import BaseModel, ConfigDict

from ray_apps.local import jobs, processes, redis_server
from ray_apps.local import running as record
from ray_apps.local.running import Running

DAEMONS = ("gcs_server", "raylet")  # without either of them a cluster is gone


class Part(BaseModel):
    """One part: whether it answers, and where."""

    model_config = ConfigDict(frozen=True)

    name: str
    up: bool
    where: str


class Status(BaseModel):
    """The parts of a platform, and how many processes it has; without parts nothing was started."""

    model_config = ConfigDict(frozen=True)

    home: Path
    parts: tuple[Part, ...] = ()
    processes: int = 0
    running: Running | None = None

    @property
    def healthy(self) -> bool:
        """Whether everything that was started answers."""
        return (
            bool(self.parts)
            and all(part.up for part in self.parts)
            and bool(self.running and self.running.ready)
        )


def status(home: Path) -> Status:
    """Ask every part of the platform in `home`; a few milliseconds when all is well."""
    home = home.expanduser().resolve()
    running = record.find(home)
    if running is None or running.boot != record.boot_id():
        return Status(home=home, processes=len(processes.of_platform(home, ())))
    found = processes.of_platform(home, running.sessions.values())
    commands = [each.command for each in found]
    parts = (
        Part(name="redis", up=_redis(running), where=f"{running.settings.host}:{running.ports.redis}"),
        Part(
            name="ray",
            up=all(any(f"/{daemon} " in each for each in commands) for daemon in DAEMONS),
            where=running.ray_address,
        ),
        Part(name="jobs", up=jobs.answers(running), where=running.jobs_url),
        Part(name="grpc", up=_listens(running.settings.host, running.ports.grpc), where=running.grpc_address),
        Part(name="gateway", up=_answers(f"{running.url}/healthz"), where=running.url),
        *(
            Part(
                name=f"model {name}",
                up=_answers(f"{running.url}/v2/models/{name}/ready", alive=True),
                where=f"{running.url}/v2/models/{name}",
            )
            for name in running.models
        ),
    )
    return Status(home=home, parts=parts, processes=len(found), running=running)


def _redis(running: Running) -> bool:
    client = redis.Redis.from_url(running.redis_url, socket_connect_timeout=1, socket_timeout=2)
    try:
        return redis_server.answers(client)
    except redis.exceptions.RedisError:
        return False
    finally:
        client.close()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _answers(url: str, *, alive: bool = False) -> bool:
    """Whether `url` answers well; with `alive`, any answer of the application itself will do."""
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
