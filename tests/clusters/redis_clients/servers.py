"""Real servers of Redis for tests: one server, a master with Sentinels, and a Cluster, each of processes of its own."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conditions.servers import oldest_redis
from tests.ports import free_port

DEADLINE_S = 30.0
PASSWORD = "pw:with@signs/"  # to be quoted in a url
USER = "toque"
ACL = f"user {USER} on >{PASSWORD} ~toque* &toque* +@all -@dangerous +info +config|get +bgsave +bgrewriteaof +cluster"


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


class Server:
    """One process; `lines` are its configuration beside port and folder."""

    def __init__(
        self,
        folder: Path,
        lines: Sequence[str] = (),
        *,
        sentinel: bool = False,
        bus: bool = False,
        program: str | None = None,
    ) -> None:
        self.program = program or oldest_redis()
        self.port = free_port(below=22_768) if bus else free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True)
        self.file = self.folder / "redis.conf"
        text = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", 'save ""', *lines]
        self.file.write_text("\n".join(text) + "\n")
        self.mode = ["--sentinel"] if sentinel else []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        with (self.folder / "log").open("ab") as log:
            command = [self.program, str(self.file), *self.mode]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, **options: Any) -> Any:
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), **options)

    def answers(self, **options: Any) -> bool:
        try:
            with self.client(**options) as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False

    def ask(self, *command: Any, **options: Any) -> Any:
        with self.client(**options) as client:
            return client.execute_command(*command)


class SentinelService:
    """A master and a replica, watched by three Sentinels that fail over after half a second."""

    def __init__(self, folder: Path) -> None:
        auth = ["requirepass secret", "masterauth secret"]
        self.master = Server(folder, auth).start()
        self.replica = Server(folder, [*auth, f"replicaof 127.0.0.1 {self.master.port}"]).start()
        wait_for(self._in_step, "the replica follows")
        watch = [
            f"sentinel monitor rows 127.0.0.1 {self.master.port} 2",
            "sentinel auth-pass rows secret",
            "sentinel down-after-milliseconds rows 500",
            "sentinel failover-timeout rows 3000",
        ]
        self.sentinels = [Server(folder, watch, sentinel=True).start() for _ in range(3)]
        for sentinel in self.sentinels:
            wait_for(lambda each=sentinel: self._knows_all(each), "the Sentinels know each other")
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url = f"redis+sentinel://:secret@{hosts}/0?service=rows&sentinel_auth=none"

    def _in_step(self) -> bool:
        if not self.replica.answers(password="secret"):
            return False
        with self.replica.client(password="secret") as client:
            return bool(client.info("replication")["master_link_status"] == "up")

    def _knows_all(self, sentinel: Server) -> bool:
        if not sentinel.answers():
            return False
        with sentinel.client() as client:
            state = client.sentinel_masters()["rows"]
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)

    def kill(self) -> None:
        for each in (self.master, self.replica, *self.sentinels):
            each.kill()


class Cluster:
    """Three masters, and a replica of the first, which takes over after a second."""

    def __init__(self, folder: Path, *, replica: bool = False) -> None:
        lines = ["cluster-enabled yes", "cluster-node-timeout 1000", "cluster-announce-ip 127.0.0.1"]
        lines += ["requirepass secret", "masterauth secret", "appendonly yes"]
        self.nodes = [Server(folder, lines, bus=True).start() for _ in range(3 + replica)]
        for number, node in enumerate(self.nodes):
            wait_for(lambda each=node: each.answers(password="secret"), "the node answers")
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, password="secret")
            if number < 3:
                slots = range(number * 5462, min(16_384, (number + 1) * 5462))
                node.ask("CLUSTER", "ADDSLOTS", *slots, password="secret")
        if replica:
            first = self.nodes[0].ask("CLUSTER", "MYID", password="secret").decode()
            wait_for(lambda: self._replicates(first), "the replica knows its master")
        for node in self.nodes:
            wait_for(lambda each=node: self._whole(each), "every node sees the whole Cluster")
        self.url = f"redis+cluster://:secret@127.0.0.1:{self.nodes[1].port},127.0.0.1:{self.nodes[2].port}"

    def _replicates(self, master: str) -> bool:
        try:
            self.nodes[3].ask("CLUSTER", "REPLICATE", master, password="secret")
        except redis.exceptions.ResponseError:
            return False
        wait_for(
            lambda: (
                self.nodes[3].client(password="secret").info("replication").get("master_link_status") == "up"
            ),
            "the replica follows",
        )
        return True

    def _whole(self, node: Server) -> bool:
        with node.client(password="secret") as client:
            state = client.cluster("INFO")
        return bool(state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == len(self.nodes))

    def kill(self) -> None:
        for each in self.nodes:
            each.kill()
