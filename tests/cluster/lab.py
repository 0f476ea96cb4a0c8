"""A laboratory of machines on this one: each has an address, a disk and a cable of its own.

Power loss, a lost disk, a cut cable and a new machine are one call each. The network lies inside the lab: several labs
can be up at once, and `down` leaves nothing but logs and disks in the lab's folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tests.cluster import namespaces
from tests.cluster.namespaces import Process
from tests.cluster.roles import Role, weed_program

CODE = Path(__file__).resolve().parents[2]
NETWORK, CLIENT, FIRST = "10.201.0", 1, 10
_BOOTING = threading.Lock()  # several threads may add machines
CLOSED_PORT = 1  # nothing listens there, so that a machine that can be reached refuses at once


class Machine(BaseModel):
    """A machine of the lab, up or not. process: None when it has no power."""

    address: str
    role: Role
    process: Process | None = None

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.lives


class Secrets(BaseModel):
    """Passwords and keys of the services in a lab, made when it comes up."""

    redis: str = Field(default_factory=lambda: secrets.token_hex(16))
    s3_access: str = Field(default_factory=lambda: secrets.token_hex(8))
    s3_secret: str = Field(default_factory=lambda: secrets.token_hex(16))
    ray: str = Field(default_factory=lambda: secrets.token_hex(32))


class Lab(BaseModel):
    """What is known of a laboratory, kept in `lab.json` of its folder, and how to act on its machines.

    switch: the process that holds the network; environment: variables of every command on every machine.
    """

    folder: Path
    switch: Process
    secrets: Secrets = Field(default_factory=Secrets)
    environment: dict[str, str] = {}
    machines: dict[str, Machine] = {}

    @classmethod
    def up(cls, folder: Path, *, kept: bool = False) -> Lab:
        """A lab without machines. kept: it stays when this process ends.

        Raises: RuntimeError if a lab is up in that folder, or it holds something else.
        """
        folder = folder.resolve()
        if (folder / "lab.json").exists():
            if cls.find(folder).switch.lives:
                raise RuntimeError(f"a lab is up in {folder}; take it down first")
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise RuntimeError(f"{folder} is not empty, and not a lab's folder; name another")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "hosts").touch()
        keeper = "sleep infinity" if kept else "cat"
        script, log = namespaces.SWITCH, folder / "switch.log"
        switch = namespaces.first_process(
            namespaces.UNSHARE, script, f"{NETWORK}.{CLIENT}/24", keeper, log=log, kept=kept
        )
        return cls(folder=folder, switch=switch)._saved()

    @classmethod
    def find(cls, folder: Path) -> Lab:
        """The lab of a folder, made by this or another process."""
        return cls.model_validate_json((folder / "lab.json").read_text())

    def down(self) -> None:
        """End the lab and with it every machine."""
        self.switch.end()

    def add(self, name: str, role: Role | None = None) -> Machine:
        """Give a machine power and start what it is for. role: None for the one that it had before.

        Its disk is empty, unless it was killed with `keep_disk`. Raises: RuntimeError.
        """
        known = self.machines.get(name)
        if known is not None and known.is_up:
            raise RuntimeError(f"{name} is up; kill it first")
        if role is None:
            if known is None:
                raise RuntimeError(f"{name} is new; say its role")
            role = known.role
        with _BOOTING:
            self._boot(name, known.address if known else self._free_address(), role)
        role.begin(self, name)
        return self.machines[name]

    def kill(self, name: str, *, keep_disk: bool = False) -> None:
        """Take the power from a machine: no process says farewell, and no peer is told."""
        process = self._process(name)
        self.cut(name)
        process.end()
        # It may be gone already, or the kernel may keep it while sockets wait for answers.
        self._ip("link", "delete", _cable(name), check=False)
        self.machines[name].process = None
        self._saved()
        if not keep_disk:
            shutil.rmtree(self.folder / name / "disk")

    def cut(self, name: str) -> None:
        """Take a machine's cable out of the switch: packets vanish, and no process notices.

        Raises: RuntimeError if the machine can still be reached.
        """
        self._process(name)
        self._ip("link", "set", _cable(name), "nomaster")
        if self.reachable(name):
            raise RuntimeError(f"{name} can still be reached: the cut had no effect")

    def heal(self, name: str) -> None:
        """Put a machine's cable back; returns when it can be reached."""
        self._ip("link", "set", _cable(name), "master", "switch")
        until(lambda: self.reachable(name), f"{name} can be reached")

    @contextmanager
    def network(self) -> Iterator[None]:
        """Make this thread a client in the lab's network, with this machine's disk."""
        with namespaces.network_of(self.switch):
            yield

    def reachable(self, name: str, port: int = CLOSED_PORT, *, refused: bool = True) -> bool:
        """Whether a machine answers a client of the lab. refused: whether a refusal counts as an answer."""
        with self.network():
            try:
                socket.create_connection((self.address(name), port), 0.5).close()
            except ConnectionRefusedError:
                return refused
            except OSError:
                return False
            return True

    def address(self, name: str) -> str:
        """The IP address of a machine."""
        return self.machines[name].address

    def disk(self, name: str) -> Path:
        """The folder that a machine has as /tmp."""
        return self.folder / name / "disk"

    def log(self, name: str) -> Path:
        """The file with what commands on a machine printed."""
        return self.folder / name / "log"

    def run(self, name: str, *command: str, timeout_s: float = 300, **variables: str) -> str:
        """Run a command on a machine to its end; returns its standard output.

        variables: added to its environment. Raises: RuntimeError with the end of its output if it fails.
        """
        done = subprocess.run(
            self._on(name, command),
            env=self.variables(name) | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        with self.log(name).open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            raise RuntimeError(f"on {name}: {' '.join(command)}: exit code {done.returncode}\n{said}")
        return done.stdout

    def start(self, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine; what it prints goes to the machine's log."""
        with self.log(name).open("ab") as out:
            return subprocess.Popen(
                self._on(name, command),
                env=self.variables(name) | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def variables(self, name: str) -> dict[str, str]:
        """The environment of a command on a machine; nothing is inherited from this process."""
        programs = [
            Path(sys.executable).parent,
            *map(Path, ("/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")),
        ]
        own = {
            "PATH": os.pathsep.join(map(str, programs)),
            "HOME": str(self._home(name)) if name == "client" else "/tmp/home",  # noqa: S108  # its own
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(CODE),
        }
        return own | self.environment

    def processor_seconds(self, name: str) -> dict[int, float]:
        """Processor time, in seconds, of each process that lives on a machine, by process id."""
        space = Path(f"/proc/{self._process(name).pid}/ns/pid").stat().st_ino
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns" / "pid").stat().st_ino == space:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    ticks = int(fields[11]) + int(fields[12])
                    found[int(folder.name)] = ticks / os.sysconf("SC_CLK_TCK")
            except OSError:  # it has just ended, or is not ours to look at
                continue
        return found

    def _boot(self, name: str, address: str, role: Role) -> None:
        """Namespaces, disk and cable of a machine; nothing runs on it yet."""
        home = self._home(name)
        home.mkdir(parents=True, exist_ok=True)
        self.machines[name] = Machine(address=address, role=role)
        # In place, as it is mounted on every machine.
        (self.folder / "hosts").write_text(
            "\n".join(
                ["127.0.0.1 localhost", *(f"{each.address} {key}" for key, each in self.machines.items())]
            )
            + "\n"
        )
        process = namespaces.first_process(
            self.switch.entering(namespaces.UNSHARE),
            namespaces.MACHINE,
            str(self.folder / "hosts"),
            str(self.disk(name)),
            name,
            *_below_tmp(),
            log=self.log(name),
        )
        self.machines[name].process = process
        self._saved()
        self._ip(
            "link", "add", _cable(name), "type", "veth", "peer", "name", "eth0", "netns", str(process.pid)
        )
        self._ip("link", "set", _cable(name), "master", "switch", "up")
        hardware = f"02:00:00:00:00:{int(address.rpartition('.')[2]):02x}"  # kept, as peers remember it
        settings = (
            "link set lo up",
            f"link set eth0 address {hardware}",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
        )
        for line in settings:
            subprocess.run(process.entering(["ip", *line.split()]), check=True)
        until(lambda: self.reachable(name), f"{name} can be reached")

    def _on(self, name: str, command: tuple[str, ...]) -> list[str]:
        return self._process(name).entering(["env", f"--chdir={CODE}", *command])

    def _home(self, name: str) -> Path:
        return self.disk(name) / "home"

    def _process(self, name: str) -> Process:
        if name == "client":
            self._home(name).mkdir(parents=True, exist_ok=True)
            return self.switch
        machine = self.machines.get(name)
        if machine is None or machine.process is None or not machine.process.lives:
            raise RuntimeError(
                f"{name} is not up in {self.folder}; there are {', '.join(self.machines) or 'none'}"
            )
        return machine.process

    def _ip(self, *arguments: str, check: bool = True) -> None:
        """`ip` on the lab's own network, where the switch is."""
        command = ["nsenter", f"--target={self.switch.pid}", "--net", "ip", *arguments]
        subprocess.run(command, check=check, capture_output=True)

    def _free_address(self) -> str:
        taken = [int(each.address.rpartition(".")[2]) for each in self.machines.values()]
        return f"{NETWORK}.{max([FIRST - 1, *taken]) + 1}"

    def _saved(self) -> Lab:
        partial = self.folder / "lab.partial"
        partial.touch(mode=0o600)
        partial.write_text(self.model_dump_json(indent=1))
        partial.replace(self.folder / "lab.json")
        return self


def until(there: Callable[[], Any], what: str, *, within_s: float = 120, every_s: float = 0.1) -> float:
    """Wait until something holds; returns after how many seconds. Raises: TimeoutError."""
    begun = time.monotonic()
    while not there():
        if time.monotonic() - begun > within_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - begun


def _cable(name: str) -> str:
    return f"to-{name}"[:15]  # the kernel takes no longer name


def _below_tmp() -> list[str]:
    """Folders that commands on a machine read and that lie in /tmp, which it has for itself."""
    needed = {str(CODE), sys.prefix, sys.base_prefix}
    if (weed := weed_program()) is not None:
        needed.add(str(weed.parent))
    return sorted(each for each in needed if each.startswith("/tmp/"))  # noqa: S108  # as above
