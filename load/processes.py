"""Processes of a platform on this machine, found by the folder it was started in, and their processor time by role."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil  # locust brings it
import redis

Result = TypeVar("Result")
ROLES = ("replica", "door", "other")
Processes = Mapping[int, tuple[str, float]]
"""Role and spent core-seconds of each process, by its id."""


def of_platform(home: Path, read: Callable[[Any, str], Result]) -> dict[int, Result]:
    """Read something of each process of the platform that was started in `home`, by process id.

    read: gets a process (psutil's) and its command line.
    """
    session, found = str(home.resolve()), {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.environ().get("TOQUE_SESSION") == session:
                found[process.pid] = read(process, " ".join(process.cmdline()))
    return found


def platform_processes(home: Path, model: str) -> Processes:
    """Find the processes of the platform that was started in `home`, with their roles for a model."""
    replica = re.compile(rf"ServeReplica:predictor-{re.escape(model)}:")

    def role(command: str) -> str:
        if replica.search(command):
            return "replica"
        return "door" if "haproxy" in command.split(" ", 1)[0] else "other"

    return of_platform(home, lambda process, command: (role(command), sum(process.cpu_times()[:2])))


def spent_s(before: Processes, after: Processes) -> dict[str, float]:
    """Core-seconds by role between two moments, of processes that were there at both."""
    spent = dict.fromkeys(ROLES, 0.0)
    for pid, (role, then_s) in before.items():
        if pid in after:
            spent[role] += after[pid][1] - then_s
    return spent


def redis_cpu_s(server: redis.Redis) -> float:
    """Read the processor seconds of a redis-server."""
    used: Any = server.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
