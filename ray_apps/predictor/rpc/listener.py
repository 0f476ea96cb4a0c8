"""The port on which gRPC is served."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from ray_apps.predictor.rpc.connection import Connection, Service
from ray_apps.predictor.rpc.outbox import Port

__all__ = ["Listener"]

CHECK_S = 5.0
BACKLOG = 1_024


class Listener:
    """Answers the calls that come to `address` ("host:port") by `service`, from `start` to `stop`.

    Several may have the same address, so that the next one listens before the last one ends.
    Raises: RuntimeError if the address cannot be had.
    """

    def __init__(self, service: Service, address: str) -> None:
        self._service = service
        self._port, self._connections = Port(), set[Connection]()
        self._server: asyncio.Server | None = None
        self._checking: asyncio.Task[None] | None = None
        host, _, port = address.rpartition(":")
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        )  # callers that vanished are noticed
        try:
            self._socket.bind((host.strip("[]"), int(port)))
        except OSError as error:
            self._socket.close()
            raise RuntimeError(
                f"gRPC cannot listen at {address} ({error}); end what holds the port, or choose another"
            ) from error

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._service, self._port, self._connections),
            sock=self._socket,
            backlog=BACKLOG,
        )
        self._checking = loop.create_task(self._check())

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end: calls in flight get `grace_s`."""
        if self._server is None or self._checking is None:
            self._socket.close()
            return
        self._server.close()
        for connection in list(self._connections):
            connection.leave()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - they end one by one
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        self._checking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._checking

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            for connection in list(self._connections):
                connection.check()
