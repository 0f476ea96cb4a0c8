"""The front as a Serve application: on one port of its node, without a route of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.schema import LoggingConfig

from ray_apps.predictor.rpc.front import Front
from ray_apps.predictor.rpc.listener import Listener
from ray_apps.predictor.rpc.upstream import Upstream

__all__ = ["GRPC_APP", "FrontOptions", "grpc_application"]

GRPC_APP = "grpc"
"""The name of the Serve application."""
GRACE_S = 5.0


class FrontReplica:
    """Listens for gRPC as long as the replica lives."""

    def __init__(self, address: str, url: str, *, max_message_bytes: int, max_calls: int) -> None:
        self._front = Front(Upstream(url), max_message_bytes=max_message_bytes, max_calls=max_calls)
        self._server = Listener(self._front, address)
        self._started = asyncio.get_running_loop().create_task(self._server.start())

    async def check_health(self) -> None:
        """Whether it listens. Raises: what starting it raised."""
        await asyncio.shield(self._started)

    async def __del__(self) -> None:
        """End: calls in flight get a few seconds."""
        await self._server.stop(GRACE_S)
        self._front.close()


class FrontOptions(BaseModel):
    """How the front is deployed.

    url: Serve's HTTP door. host, port: where it listens. num_replicas: on one node they share the port.
    num_cpus: reserved for each. max_message_bytes: of one request. max_calls: at once, in each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65535)
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0.0, ge=0)
    max_message_bytes: int = Field(default=64 << 20, ge=1 << 10)
    max_calls: int = Field(default=1_280, ge=1)


def grpc_application(options: FrontOptions | Mapping[str, Any]) -> serve.Application:
    """The front as an application; run it without a route prefix.

    options: those of a Serve config file come as a mapping. Raises: pydantic.ValidationError, naming the field.
    """
    options = FrontOptions.model_validate(options)
    deployment: Any = serve.deployment(  # Serve's overloads take a class with options for a decorator
        FrontReplica,
        name="grpc-front",
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.num_cpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    bound: serve.Application = deployment.bind(
        f"{options.host}:{options.port}",
        options.url,
        max_message_bytes=options.max_message_bytes,
        max_calls=options.max_calls,
    )
    return bound
