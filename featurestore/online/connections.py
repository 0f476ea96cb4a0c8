"""Cache of Redis connections for reads, because taking one from the client's pool costs a third of a read.

The cache skips the client's own work (checking the socket, metrics, retries). Where a cached connection turns out to be
broken, the command runs again through the client, so it has to be one that may run twice.
"""

import os
from typing import Any

from toque.clusters.redis_clients import TRANSIENT


class ConnectionCache:
    """Cache of idle connections, as many as threads that read at one time.

    client: of one server; closing it closes them too, and the next call reopens them.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._idle: list[Any] = []

    def call(self, *command: Any) -> Any:
        """Run a command and return the undecoded answer.

        command: must only read.
        Raises: RedisError.
        """
        connection = self._acquire()
        try:
            connection.send_command(*command)
            answer = connection.read_response(disable_decoding=True)
        except TRANSIENT:  # closed since the last call, or the server is gone or loads its data
            self._pool.release(connection)
            return self._client.execute_command(*command)
        except BaseException:  # an answer may be half read
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._idle.append(connection)
        return answer

    def _acquire(self) -> Any:
        """Take a connection of this process that no other thread uses."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.get_connection()
            if connection.pid == os.getpid():  # otherwise inherited through a fork
                return connection
