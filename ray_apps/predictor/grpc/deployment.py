"""The gRPC proxy as a Serve application: on one port of its node, without a route of its own.

It asks the models' HTTP endpoints behind one address, over kept connections.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import grpc
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.schema import LoggingConfig
from yarl import URL

from toque.clusters.profile import apply_profile
from toque.functions.runtime.context import context_of
from toque.functions.runtime.process import enter_process
from toque.ray_apps.admission import flush_refusals, open_admission
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.predictor.grpc.call import Limits, UnreachableError
from toque.ray_apps.predictor.grpc.service import Models, make_handler
from toque.ray_apps.predictor.http.auth import Authenticator, NoAuthentication, TokenAuthenticator
from toque.ray_apps.predictor.http.endpoint import Answer
from toque.ray_apps.serve.spread import DOOR, SHARE, laid_out, one_on_each_door
from toque.registry import open_store
from toque.registry.audit_keys import AuditKeys

GRPC_APP = "grpc"
"""The name of the Serve application."""
GRACE_S = 5.0
"""Time for calls in flight when a replica ends: less than Serve gives it."""


class ProxyOptions(BaseModel):
    """Options of the gRPC proxy's deployment.

    url: Serve's HTTP server. store_url: the platform's store, which has the access list. oidc: issuer whose
    tokens are accepted, too. authentication: False leaves
    it to the HTTP endpoints. host, port: where it listens. on_each_door: one on every node with the resource `door`,
    as those come and go, each asking its own node's HTTP server; overrides num_replicas, of which those on one node
    share the port. num_cpus: reserved for each. max_message_bytes: of one request. max_calls: at once, in each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    store_url: str
    authentication: bool = True
    oidc: OidcSettings | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65535)
    on_each_door: bool = False
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0.0, ge=0)
    max_message_bytes: int = Field(default=Limits().max_message_bytes, ge=1 << 10)
    max_calls: int = Field(default=Limits().max_calls, ge=1)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **fields: Any) -> Self:
        """Options with the store and issuer that `TOQUE_STORE` and `TOQUE_OIDC` name, unless `fields` do.

        Raises: pydantic.ValidationError, naming the field.
        """
        found = {
            "store_url": context_of(environment).platform_url,
            "oidc": OidcSettings.from_environment(environment),
        }
        return cls.model_validate(found | fields)


class ProxyReplica:
    """Serves gRPC as long as the replica lives. Raises: RuntimeError if the address cannot be had."""

    def __init__(self, options: dict[str, Any]) -> None:
        apply_profile(os.environ)
        chosen = ProxyOptions.model_validate(options)
        enter_process("grpc", store_url=chosen.store_url, environment=os.environ)
        limits = Limits(max_message_bytes=chosen.max_message_bytes, max_calls=chosen.max_calls)
        address = f"{chosen.host}:{chosen.port}"
        self._server = GrpcServer(HttpModels(chosen.url), _authenticator(chosen), address, limits)
        self._started = asyncio.get_running_loop().create_task(self._server.start())

    async def check_health(self) -> None:
        """Wait until the server listens. Raises: what starting it raised."""
        await asyncio.shield(self._started)

    async def __del__(self) -> None:
        """Stop the server and note its last refusals; calls in flight get a few seconds."""
        await self._server.stop(GRACE_S)
        await asyncio.get_running_loop().run_in_executor(None, flush_refusals)


def _authenticator(options: ProxyOptions) -> Authenticator:
    if not options.authentication:
        return NoAuthentication(workspace=None)
    store = open_store(options.store_url, audit_keys=AuditKeys.of_environment(os.environ))
    return TokenAuthenticator(open_admission(store, "grpc-proxy", oidc=options.oidc), workspace=None)


def _where(options: ProxyOptions) -> dict[str, Any]:
    """Arguments of the deployment that say how many replicas there are, and on which nodes."""
    own = {"graceful_shutdown_timeout_s": 10}  # no HAProxy stands before it
    if not options.on_each_door:
        actor = {"num_cpus": options.num_cpus}
        return laid_out(own | {"num_replicas": options.num_replicas, "ray_actor_options": actor})
    needs = {"num_cpus": options.num_cpus, "resources": {DOOR: SHARE}}
    return one_on_each_door() | own | {"ray_actor_options": needs}


def grpc_application(options: ProxyOptions | Mapping[str, Any]) -> serve.Application:
    """Make the proxy's Serve application, to be run without a route prefix.

    options: those of a Serve config file come as a mapping, without the store of this process's environment.
    Raises: pydantic.ValidationError, naming the field.
    """
    if not isinstance(options, ProxyOptions):
        options = ProxyOptions.from_environment(os.environ, **options)
    deployment: Any = serve.deployment(  # Serve's overloads take a class with options for a decorator
        ProxyReplica,
        name="grpc-proxy",
        **_where(options),
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    bound: serve.Application = deployment.bind(options.model_dump(mode="json"))
    return bound


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


CONNECT_S: Final = 5.0
"""Timeout of a connection to the node's own HTTP server."""
KEPT_S: Final = 30.0
"""How long an idle connection is kept; HAProxy's own bound is longer."""
_UNSENT: Final = {"Accept", "Accept-Encoding", "User-Agent", "Content-Type"}


class HttpModels:
    """Sends requests to the server at `url` ("http://host:port"). Belongs to one event loop.

    Raises: ValueError for another form of address.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"url: expected http://host:port, got {url!r}")
        self._url = f"http://{parts.netloc}"
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"", /
    ) -> Answer:
        """Send a request, and return the server's answer; path: quoted. A cancelled request closes its connection.

        Raises: UnreachableError.
        """
        try:
            try:
                return await self._request(method, path, headers, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError):
                # The server may have closed a kept connection just as the request left: once more, on another.
                return await self._request(method, path, headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{self._url}: {error}") from error

    async def close(self) -> None:
        """Close the connections to the server."""
        if self._session is not None:
            await self._session.close()

    async def _request(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        if self._session is None:
            self._session = _open_session()
        sent = {name.decode(): value.decode("latin-1") for name, value in headers.items()}
        url = URL(self._url + path, encoded=True)
        async with self._session.request(
            method, url, headers=sent, data=body or None, allow_redirects=False
        ) as response:
            content = await response.read()
            answered = [(name.lower(), value) for name, value in response.raw_headers]
            return response.status, answered, content


def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),  # calls are bounded already
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S
        ),  # the caller's deadline bounds the rest
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_UNSENT,
    )


__all__ = ["GRPC_APP", "GrpcServer", "HttpModels", "ProxyOptions", "grpc_application"]
