"""Linux namespaces as machines: a machine is the first process of its own namespaces, and ends with it.

Network, mounts, process ids, host name and System V memory belong to the machine; /tmp, /dev/shm and HOME are its own,
and all else of the disk can be read, not written.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = ("ip", "mount", "nsenter", "unshare")
STAY = "echo ready; exec env --ignore-signal=CHLD {}"
"""A first process that ignores SIGCHLD leaves no zombies. Ray's workers end when their raylet's process is gone, and a zombie is not."""
SHARED_MEMORY = "2g"

# $1 hosts, $2 disk, $3 name; further: folders below /tmp that must stay readable
MACHINE = f"""
hosts=$1 disk=$2; hostname "$3"; shift 3
for kept; do
  mkdir -p "$disk/${{kept#/tmp/}}"
  mount --bind "$kept" "$disk/${{kept#/tmp/}}"
  mount -o remount,bind,ro "$disk/${{kept#/tmp/}}"
done
mount --bind "$hosts" /etc/hosts
mount -o remount,bind,ro /
mount --rbind "$disk" /tmp
mount -o remount,bind,rw /tmp
mount -t tmpfs -o size={SHARED_MEMORY} tmpfs /dev/shm
{STAY.format("sleep infinity")}
"""
# $1: address of the lab with its prefix; $2: what keeps it
SWITCH = f"""
ip link set lo up
ip link add switch type bridge
ip addr add "$1" dev switch
ip link set switch up
{STAY.format("$2")}
"""
PROBE = "ip link add switch type bridge && ip link add cable type veth && mount -t tmpfs tmpfs /dev/shm"


@dataclass(frozen=True)
class Process:
    """A process that no other can be taken for: its id, and when it began in clock ticks."""

    pid: int
    begun: str

    @property
    def lives(self) -> bool:
        return _begun(self.pid) == self.begun

    def end(self) -> None:
        """Send SIGKILL; the kernel ends everything in the namespaces of a first process with it."""
        if self.lives:
            os.kill(self.pid, signal.SIGKILL)
        while self.lives:
            time.sleep(0.005)

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command, run in the namespaces of this process."""
        return ["nsenter", f"--target={self.pid}", "--all", "--", *command]


def missing() -> str | None:
    """What this machine lacks to make machines of namespaces, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"no program {program!r}: install iproute2 and util-linux"
    tried = subprocess.run([*UNSHARE, "sh", "-ec", PROBE], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


def first_process(
    command: Sequence[str], script: str, *arguments: str, log: Path, kept: bool = True
) -> Process:
    """Start `command` with a script that makes namespaces its own, says `ready`, and stays.

    kept: it stays when this process ends; otherwise it ends with it.
    Raises: RuntimeError with the end of its log.
    """
    with log.open("ab") as out:
        starter = subprocess.Popen(
            [*command, "sh", "-ec", script, "sh", *arguments],
            stdin=subprocess.DEVNULL if kept else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
        )
    assert starter.stdout is not None
    if starter.stdout.readline() != b"ready\n":
        raise RuntimeError(f"no machine could be started: {log.read_text()[-2000:]}")
    starter.stdout.close()
    _starters.append(starter)
    pid = starter.pid
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return Process(pid, _begun(pid) or "")


@contextlib.contextmanager
def network_of(process: Process) -> Iterator[None]:
    """Make this thread, and what it starts meanwhile, use the network of a process."""
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{process.pid}/ns/net").open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


_starters: list[subprocess.Popen[bytes]] = []  # kept, as a pipe that is collected would close
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns in thread {threading.get_native_id()}: {os.strerror(number)}")


def _begun(pid: int) -> str | None:
    """When a process began; None if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None
