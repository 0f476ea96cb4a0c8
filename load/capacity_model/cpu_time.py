"""Processor time of a platform's processes on this machine, by what they do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from toque.load import processes

__all__ = ["ROLES", "Processes", "platform_processes", "redis_cpu_s", "spent_s"]

ROLES = ("replica", "door", "other")

Processes = Mapping[int, tuple[str, float]]
"""Role and spent core-seconds of each process, by its id."""


def platform_processes(home: Path, model: str) -> Processes:
    """Find the processes of the platform that was started in `home`, with their roles for a model."""
    replica, found = re.compile(rf"ServeReplica:predictor-{re.escape(model)}:"), {}
    for pid, command in processes.of_platform(home).items():
        with contextlib.suppress(OSError):  # it has just ended
            found[pid] = (_role(command, replica), processes.cpu_s(pid))
    return found


def spent_s(before: Processes, after: Processes) -> dict[str, float]:
    """Core-seconds by role between two moments, of processes that were there at both."""
    spent = dict.fromkeys(ROLES, 0.0)
    for pid, (role, then_s) in before.items():
        if pid in after:
            spent[role] += after[pid][1] - then_s
    return spent


def _role(command: str, replica: re.Pattern[str]) -> str:
    if replica.search(command):
        return "replica"
    return "door" if "haproxy" in command.split(" ", 1)[0] else "other"


def redis_cpu_s(server: redis.Redis) -> float:
    """Read the processor seconds of a redis-server."""
    used: Any = server.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
