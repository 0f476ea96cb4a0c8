"""Processor time of a platform's processes on this machine, by what they do."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROLES", "Processes", "platform_processes", "spent_s"]

ROLES = ("replica", "door", "other")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Processes = Mapping[int, tuple[str, float]]
"""Role and spent core-seconds of each process, by its id."""


def platform_processes(home: Path, model: str) -> Processes:
    """Find the processes of the platform that was started in `home`, with their roles for a model."""
    mark = f"TOQUE_SESSION={home.resolve()}\0".encode()
    replica = re.compile(rf"ServeReplica:predictor-{re.escape(model)}:")
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if mark not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(folder.name)] = (_role(command, replica), _cpu_s(folder))
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


def _cpu_s(folder: Path) -> float:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
