"""Processes that follow streams as a replica does, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import redis

from tests.waiting import until
from toque.functions.runtime.context import Context, context_of

ROOT = Path(__file__).parents[3]


@dataclass
class Following:
    """Some processes that follow all streams of a store.

    folder: of the store, and of what the processes say. secrets: by name.
    """

    folder: Path
    redis_url: str
    secrets: dict[str, str]
    count: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """Variables of the processes."""
        own = {"TOQUE_STORE": f"file://{self.folder}/store", "TOQUE_REDIS_URL": self.redis_url}
        return own | self.secrets

    def context(self) -> Context:
        """Make the context in which the processes run."""
        return context_of(self.settings)

    def __enter__(self) -> Self:
        self.running = [self._start() for _ in range(self.count)]
        return self

    def __exit__(self, *_: object) -> None:
        """End all by SIGTERM, and check that they end well: one that is only beginning ends by the signal itself."""
        for each in self.running:
            each.terminate()
        assert {each.wait(60) for each in self.running} <= {0, -signal.SIGTERM}

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | self.settings | {"PYTHONPATH": str(ROOT)}
        with (self.folder / "log").open("ab") as to:
            command = [sys.executable, "-m", "toque.ray_apps.streams"]
            return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=to, stderr=to)

    def kill(self, number: int) -> None:
        """Kill a process, and start another in its place."""
        self.running[number].kill()
        self.running[number].wait()
        self.running[number] = self._start()

    def kill_owner(self, source: str, partition: int) -> None:
        """Wait until a process holds the lease on a partition, and kill it."""
        owner = 0

        def owned() -> bool:
            nonlocal owner
            owner = owners(self.redis_url, source, partition + 1).get(partition, 0)
            return owner in [each.pid for each in self.running]

        wait_for(owned, self.told)
        self.kill([each.pid for each in self.running].index(owner))

    def told(self) -> str:
        """Return the end of what the processes said."""
        return (self.folder / "log").read_text()[-3000:]


def owners(redis_url: str, source: str, partitions: int) -> dict[int, int]:
    """Find the process that holds the lease on each partition of a stream."""
    names = [f"toque:leader:stream-default-{source}-{each}" for each in range(partitions)]
    with redis.Redis.from_url(redis_url) as client:
        held: list[bytes | None] = client.mget(names)  # type: ignore[assignment]
    return {each: int(value.split(b"/")[1]) for each, value in enumerate(held) if value}


wait_for = partial(until, within_s=300)
"""Waits until consumers have done something, which may have to start first."""
