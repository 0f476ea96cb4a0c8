"""Stores whose uploads end otherwise than well, and a process that uploads to the one that waits: where it tells its upload's id."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from toque.functions.training.checkpoints.storage import Pace, upload_apart
from toque.registry import ObjectStore


@dataclass
class Killed:
    """Store whose uploads are killed."""

    def upload(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Waiting:
    """Store whose uploads never end; each leaves its process id and niceness in `told`."""

    told: Path

    def upload(self, *_: object) -> None:
        new = self.told.with_suffix(".new")
        new.write_text(f"{os.getpid()} {os.nice(0)}")
        new.rename(self.told)
        while True:
            time.sleep(60)  # until it is killed


if __name__ == "__main__":
    from tests.functions.training import stores  # by the name under which another process finds it

    store: ObjectStore = stores.Waiting(Path(sys.argv[1]))  # type: ignore[assignment]  # of which only uploads are asked
    upload_apart(store, "waits", [memoryview(bytes(8 << 20))], Pace())
