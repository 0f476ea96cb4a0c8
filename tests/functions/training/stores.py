"""Stores whose uploads end otherwise than well, and a process that uploads to the one that waits: the file to upload."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from functions.training.checkpoints.uploads import upload_apart
from registry import ObjectStore


@dataclass
class Killed:
    """Store whose uploads are killed."""

    def upload(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Waiting:
    """Store whose uploads never end; each leaves its process id and niceness beside the file."""

    def upload(self, _: str, path: Path) -> None:
        path.with_suffix(".new").write_text(f"{os.getpid()} {os.nice(0)}")
        path.with_suffix(".new").rename(path.with_suffix(".pid"))
        while True:
            time.sleep(60)  # until it is killed


if __name__ == "__main__":
    from tests.functions.training import stores  # by the name under which another process finds it

    store: ObjectStore = stores.Waiting()  # type: ignore[assignment]  # of which only uploads are asked
    upload_apart(store, "waits", Path(sys.argv[1]), [])
