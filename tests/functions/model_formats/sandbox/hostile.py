"""A project whose classes do, while they load, what a file made for it could make a library do."""

import ctypes
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def crash(folder: Path) -> None:
    ctypes.string_at(0)


def abort(folder: Path) -> None:
    os.abort()


def allocate(folder: Path) -> None:
    bytearray(10 << 30)


def loop(folder: Path) -> None:
    while True:
        pass


def hang(folder: Path) -> None:
    time.sleep(600)  # the attack: a load that does not end, which the limit of time has to


def connect(folder: Path) -> None:
    socket.create_connection(("127.0.0.1", int((folder / "argument").read_text())), timeout=5)


def read(folder: Path) -> None:
    raise ValueError(Path((folder / "argument").read_text()).read_text())


def write(folder: Path) -> None:
    (folder / "argument").write_text("changed after it was tried")


def remove(folder: Path) -> None:
    (folder / "argument").unlink()


def fork(folder: Path) -> None:
    os.fork()


def run(folder: Path) -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606 - it is what must fail


def kill(folder: Path) -> None:
    os.kill(os.getppid(), 9)


def spy(folder: Path) -> None:
    raise ValueError(Path(f"/proc/{os.getppid()}/environ").read_text())


def environment(folder: Path) -> None:
    raise ValueError(sorted(os.environ.items()))


def lie(folder: Path) -> None:
    for number in range(4, 64):  # 3 is its own
        try:
            os.write(number, b'{"reason": null, "held": []}\n')
        except OSError:
            continue
    os._exit(0)


def raise_limit(folder: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def nothing(folder: Path) -> None: ...


class Hostile:
    """Does what its name says when it is loaded, then answers as any model."""

    def __init__(self, act: Callable[[Path], None]) -> None:
        self._act = act

    def __call__(self) -> "Hostile":
        return self

    def load(self, folder: Path) -> None:
        self._act(folder)

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = len(inputs["numeric"])
        return {"probability": np.full((rows, 1), 0.75, np.float32)}


ACTS = (crash, abort, allocate, loop, hang, connect, read, write, remove, fork, run, kill, spy, environment, lie,
        raise_limit, nothing)  # fmt: skip
SCORERS = {act.__name__: Hostile(act) for act in ACTS}
