"""Samples of what a platform on this machine holds: memory and descriptors of each process, its files, its keys in Redis."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

from toque.load import processes

__all__ = ["Processes", "Sample", "sample"]

_REPLICA = re.compile(r"ray::ServeReplica:([\w.-]+)")


@dataclass(frozen=True, slots=True)
class Held:
    """Memory and descriptors that one process holds. role: what it does; memory: bytes of its own, without files and shared memory."""

    role: str
    memory_bytes: int
    descriptors: int


Processes = dict[int, Held]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the platform held at a moment (seconds since the epoch).

    files: of its folders, the store left out; redis_keys: those that do not expire by themselves.
    """

    at: float
    files: int
    redis_keys: int
    processes: Processes = field(default_factory=dict)


def sample(home: Path, folders: list[Path], keys: redis.Redis) -> Sample:
    """Take a sample of the platform that was started in `home`."""
    files = sum(1 for folder in folders for each in folder.rglob("*") if each.is_file())
    databases: dict[str, dict[str, int]] = keys.info("keyspace")
    lasting = sum(each["keys"] - each["expires"] for each in databases.values())
    return Sample(time.time(), files, lasting, held_by(home))


def held_by(home: Path) -> Processes:
    """Find the processes of the platform that was started in `home`, and what each holds."""
    found = {}
    for pid, command in processes.of_platform(home).items():
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            own = next(line for line in status if line.startswith("RssAnon:"))
            descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            found[pid] = Held(role_of(command), int(own.split()[1]) << 10, descriptors)
    return found


def has_ended(pid: int) -> bool:
    """Whether a process has given back its memory and closed its connections, though its parent may not have heard."""
    try:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return processes.stat(pid)[0] in "ZX" and threads <= 1  # its threads hold them, too
    except OSError:
        return True


def role_of(command: str) -> str:
    """Name what a process does, from its command line."""
    if replica := _REPLICA.search(command):
        return replica[1]
    program = Path(command.split(" ", 1)[0]).name
    if program.startswith(("haproxy", "redis-server", "raylet", "gcs_server")):
        return program.split(":")[0]
    return "ray worker" if command.startswith("ray::") else "other"
