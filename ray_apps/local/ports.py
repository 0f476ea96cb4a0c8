"""Chooses free ports, and finds the processes that hold the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toque.ray_apps.local.errors import PortTaken
from toque.ray_apps.local.processes import Process
from toque.ray_apps.local.settings import Ports

LISTENING = "0A"  # state of a listening socket in /proc/net/tcp
TRIED_ABOVE = 200


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that listens on a port; pid is None if the process belongs to another user."""

    port: int
    pid: int | None
    command: str

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"{self.command} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class PortChange:
    """Replacement of a port that was taken: its purpose, its holder, and the port used instead."""

    purpose: str
    holder: PortHolder
    port: int

    def __str__(self) -> str:
        return f"port {self.holder.port} ({self.purpose}) is held by {self.holder}; using {self.port}"


def choose_ports(
    wanted: Ports,
    *,
    host: str,
    fixed: bool = False,
    holder: Callable[[int, str], PortHolder | None] | None = None,
) -> tuple[Ports, list[PortChange]]:
    """Choose a free port for every purpose: the wanted one, or the next free port above it.

    fixed: refuse instead of taking another port. holder: finds the holder of a port (for tests).
    Raises: PortTaken, naming port, purpose and holder.
    """
    ask = holder or find_holder
    chosen: dict[str, int] = {}
    moved: list[PortChange] = []
    for purpose, port in wanted.model_dump().items():
        held = ask(port, host)
        if held is None and port in chosen.values():
            held = PortHolder(port, os.getpid(), "another part of this platform")
        if held is not None and fixed:
            raise PortTaken(
                f"port {port} ({purpose}) is held by {held}; end it, or let another port be taken"
            )
        chosen[purpose] = port if held is None else _next_free(port, set(chosen.values()), host, ask)
        if held is not None:
            moved.append(PortChange(purpose, held, chosen[purpose]))
    return Ports(**chosen), moved


def find_holder(port: int, host: str = "127.0.0.1") -> PortHolder | None:
    """Find the process that listens on `port` at `host` or at every address; None if the port is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return _listener(port)
    return None


def _next_free(port: int, taken: set[int], host: str, ask: Callable[[int, str], PortHolder | None]) -> int:
    for candidate in range(port + 1, min(port + TRIED_ABOVE, 65536)):
        if candidate not in taken and ask(candidate, host) is None:
            return candidate
    raise PortTaken(
        f"no free port from {port} to {port + TRIED_ABOVE}; end something or choose another range"
    )


def _listener(port: int) -> PortHolder:
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        if sockets & open_sockets(folder) and (found := Process.find(int(folder.name))) is not None:
            return PortHolder(port, found.pid, found.command[:120])
    return PortHolder(port, None, "")


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def open_sockets(folder: Path) -> set[str]:
    """List the open files of a process, sockets as `socket:[inode]`. folder: of the process in /proc."""
    links = set()
    try:
        for entry in os.scandir(folder / "fd"):
            links.add(os.readlink(entry.path))  # noqa: PTH115  # thousands of links: Path objects would be slow
    except OSError:
        return links  # the process ended, or belongs to another user: return what was read so far
    return links
