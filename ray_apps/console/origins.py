"""Checks of where a request comes from and where a response sends the browser on to."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

_INSIDE = re.compile(r"/(?:workspaces/[a-z0-9-]{1,63}/)?ui(?:/[^\\\x00-\x20]*)?(?:\?[^\\\x00-\x20]*)?\Z")
HOME: Final = "/ui/"


def safe_next(path: str | None) -> str:
    """Return `path` if it is a page of the console on this host, else the home page: never another site."""
    return path if path and "//" not in path.partition("?")[0] and _INSIDE.match(path) else HOME


def from_elsewhere(request: Request) -> bool:
    """Whether a browser says that another site sent this request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in {"same-origin", "none"}:
        return True
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")


def is_https(request: Request) -> bool:
    """Whether the browser's connection is encrypted, up to the proxy that ends TLS in front of the platform.

    A proxy that does not say so is known by the address at which people reach the platform, `console_url`.
    """
    if "https" in {request.url.scheme, request.headers.get("x-forwarded-proto", "")}:
        return True
    address = urlsplit(request.app.state.console_url or "")
    return address.scheme == "https" and address.netloc == request.headers.get("host", "")
