"""A redis-server of a test's own, of the oldest version that the product says it takes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.conditions.servers import oldest_redis
from tests.ports import EPHEMERAL, free_port

DEADLINE_S = 60.0


class RedisServer:
    """A server that can be killed and started again on the same append-only file; or a cluster of one such node.

    Its answers wait for the file, as far as a killed process can lose it: what the kernel has is there after a kill.
    """

    def __init__(self, folder: Path, *, cluster: bool = False, program: str | None = None) -> None:
        self.program = program or oldest_redis()
        self.folder = folder
        self.cluster = cluster
        self.port = free_port(below=22_768 if cluster else EPHEMERAL)  # a node's bus is 10,000 above its port
        self.url = f"redis://:secret@127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = f"--port {self.port} --bind 127.0.0.1 --requirepass secret --appendonly yes --appendfsync everysec"
        if self.cluster:
            options += " --cluster-enabled yes --cluster-announce-ip 127.0.0.1"
        command = [self.program, *options.split(), "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            deadline = time.monotonic() + DEADLINE_S
            while not self._answers(client):
                assert self.process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < deadline, f"redis-server did not answer in {DEADLINE_S:.0f} s"
                time.sleep(0.01)
            if self.cluster:
                client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
                while client.cluster("INFO")["cluster_state"] != "ok":
                    assert time.monotonic() < deadline, "the cluster did not come up"
                    time.sleep(0.01)

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def lose_everything(self) -> None:
        """Kill it and remove its files: the machine it was on is gone."""
        self.kill()
        for path in self.folder.glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()


@contextmanager
def running_redis(
    folder: Path, *, cluster: bool = False, program: str | None = None
) -> Iterator[RedisServer]:
    """Run a server with its files in this folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, cluster=cluster, program=program)
    server.start()
    try:
        yield server
    finally:
        server.kill()
