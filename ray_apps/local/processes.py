"""Finds and ends the processes of a platform, whatever has been killed meanwhile.

All processes that a part starts stay in that part's session (Ray's daemons, workers, replicas and HAProxy are all in the
session of their `ray start`), and inherit the variable `TOQUE_SESSION`, which names the state folder. A session outlives
its leader, so a process is found by either after a `kill -9` of any other.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "TOQUE_SESSION"
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A living process: its session, start (in clock ticks after boot), command, and value of `TOQUE_SESSION`."""

    pid: int
    session: int
    started: int
    command: str
    mark: str | None

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """Find a process by pid; None if it does not exist or is a zombie."""
        folder = Path(f"/proc/{pid}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return None
        if fields[0] in "ZX":
            return None
        return cls(pid, int(fields[3]), int(fields[19]), command, _mark(folder))


@dataclass(frozen=True, slots=True)
class ProcessSession:
    """A process session that the platform started: pid and start of its leader, which identify it."""

    leader: int
    started: int

    @classmethod
    def led_by(cls, pid: int) -> ProcessSession:
        """Describe the session of a process that was just started as its leader."""
        process = Process.find(pid)
        return cls(pid, process.started if process else 0)


def of_platform(home: Path, sessions: Collection[ProcessSession]) -> list[Process]:
    """List the living processes of the platform in `home`, oldest first, without the caller's own session.

    sessions: as recorded when the parts were started.
    """
    everything = _scan()
    ours = {each.session for each in everything if each.mark == str(home)}
    ours |= {session.leader for session in sessions if _is_same_session(session, everything)}
    ours.discard(os.getsid(0))
    return sorted((each for each in everything if each.session in ours), key=lambda each: each.started)


def end(
    home: Path, sessions: Collection[ProcessSession], *, grace_s: float, keep: Collection[int] = ()
) -> list[Process]:
    """Terminate the platform's processes, and kill those left after `grace_s`; returns those that still live.

    keep: sessions, by the pid of their leader, whose processes are not ended.
    """
    return _end(
        lambda: [each for each in of_platform(home, sessions) if each.session not in keep], grace_s=grace_s
    )


def end_sessions(sessions: Collection[ProcessSession], *, grace_s: float) -> list[Process]:
    """Terminate the processes of sessions, and kill those left after `grace_s`; returns those that still live."""

    def left() -> list[Process]:
        everything = _scan()
        ours = {session.leader for session in sessions if _is_same_session(session, everything)}
        return [each for each in everything if each.session in ours - {os.getsid(0)}]

    return _end(left, grace_s=grace_s)


def _end(left: Callable[[], list[Process]], *, grace_s: float) -> list[Process]:
    for process in left():
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while left() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    deadline = time.monotonic() + max(grace_s, 5.0)
    while (stubborn := left()) and time.monotonic() < deadline:
        for process in stubborn:
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_S)
    return stubborn


def with_mark(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Add to `environment` the variable by which processes of `home` are found."""
    return {**environment, MARK: str(home)}


def _is_same_session(session: ProcessSession, everything: Collection[Process]) -> bool:
    """Whether the session id still belongs to that session; an id is not reused while a process is in the session."""
    members = [each for each in everything if each.session == session.leader]
    leader = next((each for each in members if each.pid == session.leader), None)
    if leader is not None:
        return leader.started == session.started
    return bool(members) and all(each.started >= session.started for each in members)


def _signal(process: Process, number: signal.Signals) -> None:
    now = Process.find(process.pid)
    if now is not None and now.started == process.started:  # not another process that got the same pid
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _scan() -> list[Process]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # only names are needed, no Path objects
    return [process for pid in pids if (process := Process.find(pid)) is not None]


def _mark(folder: Path) -> str | None:
    try:
        environment = (folder / "environ").read_bytes()
    except OSError:
        return None
    wanted = f"{MARK}=".encode()
    found = next((each for each in environment.split(b"\0") if each.startswith(wanted)), None)
    return found[len(wanted) :].decode() if found else None
