"""HTTP client of the models' endpoints behind one address, over kept connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from toque.ray_apps.predictor.grpc.status import UnreachableError
from toque.ray_apps.predictor.http.endpoint import Answer

__all__ = ["HttpModels"]

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
