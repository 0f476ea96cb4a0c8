"""Check that a record is on two nodes: in this node's file, and in a Redis elsewhere or in a replica of Redis.

Whether Redis runs on this node is seen by the addresses of the connection to it. They do not show it where an address
stands for several machines, as a service of Kubernetes does: keep Redis and the writers apart there.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from toque.functions.prediction_log.writing.stream import Accepted, Stream

__all__ = ["CopyCheck"]

REPLICA_WAIT_S = 0.5


class CopyCheck:
    """Whether the records of one writer have a copy on another node, by its connection to Redis.

    two_nodes: whether such a copy is asked for. node: name of this node, with its address as Redis sees it.
    problem: why the last record had no such copy; empty if it had.
    """

    def __init__(self, stream: Stream, writer: str, *, two_nodes: bool) -> None:
        self._stream, self._writer, self._two_nodes = stream, writer, two_nodes
        self._redis_is_here = False
        self.node = os.uname().nodename
        self.problem = ""

    def look(self) -> None:
        """Look at the connection to see where Redis is. Raises: redis.RedisError."""
        node, self._redis_is_here = self._connection()
        self.node = f"{os.uname().nodename} ({node})" if node else os.uname().nodename

    def replica_wait_s(self) -> float:
        """Return how long the next shipment waits for a replica of Redis; 0 where Redis itself is the other node."""
        if not self._two_nodes:
            return 0.0
        self.look()
        return REPLICA_WAIT_S if self._redis_is_here else 0.0

    def enough(self, answer: Accepted) -> bool:
        """Whether what was shipped is confirmed."""
        return self._judge(answer.replicas)

    def reachable(self) -> bool:
        """Whether the next shipment can be confirmed, as far as is known."""
        if not (self._two_nodes and self._redis_is_here):
            return self._judge(0)
        replication: Any = self._server().info("replication")
        return self._judge(sum(_is_online(each) for each in replication.values()))

    def _judge(self, replicas: int) -> bool:
        alone = self._two_nodes and self._redis_is_here and not replicas
        self.problem = "Redis runs on this node and no replica of it has the record" if alone else ""
        return not alone

    def _server(self) -> Any:
        return self._stream.server_of(self._stream.key(self._writer))

    def _connection(self) -> tuple[str, bool]:
        """Return this node's address towards Redis, and whether Redis is at the same one."""
        pool = self._server().connection_pool
        connection = pool.get_connection()
        try:
            sock: socket.socket | None = connection._sock  # noqa: SLF001  # there is no public way to its addresses
            if sock is None or sock.family == socket.AF_UNIX:
                return "", True
            here, there = sock.getsockname()[0], sock.getpeername()[0]
        finally:
            pool.release(connection)
        return here, here == there


def _is_online(replica: Any) -> bool:
    """Whether an entry of Redis's INFO is a replica that has the data; one that still copies them confirms nothing."""
    return isinstance(replica, dict) and replica.get("state") == "online"
