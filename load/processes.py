"""Processes of a platform on this machine, found by the folder it was started in, and their processor time by role."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

_TICKS_S = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM, _NICE = 11, 12, 16  # fields of /proc/PID/stat after the name
ROLES = ("replica", "door", "other")
Processes = Mapping[int, tuple[str, float]]
"""Role and spent core-seconds of each process, by its id."""


def of_platform(home: Path) -> dict[int, str]:
    """Find the processes of the platform that was started in `home`: their command lines by process id."""
    mark, commands = f"TOQUE_SESSION={home.resolve()}\0".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if mark in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                commands[int(folder.name)] = command.decode(errors="replace")
    return commands


def stat(pid: int) -> list[str]:
    """Read what the kernel counts of a process, from its state on. Raises: OSError if it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(pid: int) -> float:
    """Read the processor seconds of a process, user and system. Raises: OSError if it has ended."""
    fields = stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_S


def niceness(pid: int) -> int:
    """Read the niceness of a process. Raises: OSError if it has ended."""
    return int(stat(pid)[_NICE])


def platform_processes(home: Path, model: str) -> Processes:
    """Find the processes of the platform that was started in `home`, with their roles for a model."""
    replica, found = re.compile(rf"ServeReplica:predictor-{re.escape(model)}:"), {}
    for pid, command in of_platform(home).items():
        with contextlib.suppress(OSError):  # it has just ended
            found[pid] = (_role(command, replica), cpu_s(pid))
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
