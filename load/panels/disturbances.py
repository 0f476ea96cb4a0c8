"""What is broken on the platform that fills every panel, for some seconds: Redis, and the engine of the language model."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import redis

from toque.load.soak.samples import held_by

__all__ = ["kill_engine", "stop_redis"]

_AWAY_S = 12.0  # longer than a command waits
_ENGINE = b"llama_cpp_server.py"


def stop_redis(events: redis.Redis) -> None:
    """Stop a Redis of this machine for some seconds. Raises: redis.RedisError if it does not answer."""
    pid = int(events.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(_AWAY_S)
    finally:
        os.kill(pid, signal.SIGCONT)


def kill_engine(home: Path) -> None:
    """Kill an engine of the platform that was started in `home`; it is started anew. Raises: OSError if there is none."""
    doors = held_by(home)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in doors and _ENGINE in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
                return
    raise OSError("no engine of a language model runs; is `xllamacpp` installed?")
