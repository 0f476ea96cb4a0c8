"""Processes of a platform on this machine, found by the folder that it was started in, and what the kernel says of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["cpu_s", "niceness", "of_platform", "stat"]

_TICKS_S = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM, _NICE = 11, 12, 16  # fields of /proc/PID/stat after the name


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
