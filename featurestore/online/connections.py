"""Connections to Redis that reads keep, because taking one from the client's pool for each costs a third of a read.

What the client does besides (looking whether the socket is still open, measuring, trying again) it still does where a
kept connection turns out to be broken: the command then goes through the client. So it has to be one that may run twice.
"""

import os
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class ConnectionCache:
    """As many connections as there are threads that read at one time.

    client: of one server; closing it closes them too, and the next call opens them again.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._idle: list[Any] = []

    def call(self, *command: Any) -> Any:
        """What the server answers, undecoded.

        command: one that only reads.
        Raises: RedisError.
        """
        connection = self._taken()
        try:
            connection.send_command(*command)
            answer = connection.read_response(disable_decoding=True)
        except (
            RedisConnectionError,
            RedisTimeoutError,
        ):  # closed by the server since the last call, or it is gone
            self._pool.release(connection)
            return self._client.execute_command(*command)
        except BaseException:  # an answer may be half read
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._idle.append(connection)
        return answer

    def _taken(self) -> Any:
        """A connection of this process that no other thread uses."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.get_connection()
            if connection.pid == os.getpid():  # after a fork it is the parent's
                return connection
