"""The gRPC server on its port, with its limits."""

from __future__ import annotations

import grpc

from toque.ray_apps.predictor.grpc.limits import Limits
from toque.ray_apps.predictor.grpc.service import Models, make_handler
from toque.ray_apps.predictor.http.auth import Authenticator

__all__ = ["GrpcServer"]


class GrpcServer:
    """Answers the calls that come to `address` ("host:port") from `start` to `stop`. Belongs to one event loop.

    models: answer the requests. auth: accepts tokens. Several servers may have the same address, so that the next
    one listens before the last one ends. Raises: RuntimeError if the address cannot be had.
    """

    def __init__(
        self, models: Models, auth: Authenticator, address: str, limits: Limits | None = None
    ) -> None:
        limits = limits or Limits()
        self._models = models
        self._server = grpc.aio.server(
            handlers=[make_handler(models, auth, limits)],
            options=limits.channel_arguments(),
            maximum_concurrent_rpcs=limits.max_calls,
        )
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise RuntimeError(
                f"gRPC cannot listen at {address} ({error}); end what holds the port, or choose another"
            ) from error

    async def start(self) -> None:
        """Start to listen and answer calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and stop after `grace_s` for the calls in flight."""
        await self._server.stop(grace_s)
        await self._models.close()
