"""Contents of open pages, rendered once after a change for all viewers who may see the same.

What a page shows follows from its address, its workspace and the grants of who looks: the name of the viewer stands in the header
alone, which is not rendered again. The proof of a viewer's forms is put in when the content is sent.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx
from cachetools import LRUCache
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from toque.ray_apps.admission import Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS, client_of, header
from toque.registry import Grant

PART: Final = "toque.part"
"""Key of the scope of a request for a page's content alone, without what stands around it."""
_RENDER_S: Final = 20.0  # a page that takes longer asks for itself, and waits for as long as it likes
_KEPT: Final = 128
_CSRF: Final = secrets.token_hex(16)  # stands for the proof of a viewer's forms


@dataclass(frozen=True, slots=True)
class Key:
    """All that the content of a page follows from. has_forms: whether its viewers signed in, so that it shows forms."""

    address: str
    workspace: str
    grants: tuple[Grant, ...]
    has_forms: bool


class Renderings:
    """Contents of pages as they were rendered last, for all streams of this process.

    app: the gateway's application, which renders them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._made: LRUCache[Key, tuple[str, asyncio.Task[str | None]]] = LRUCache(_KEPT)
        self.count = 0

    async def get(self, key: Key, version: str, authorization: bytes, client: str) -> str | None:
        """Get a page's content as JSON, rendered at a version of its topics or later; None if it cannot be shown.

        authorization: header of one who may see it. client: address that the viewer asks from, for the audit.
        """
        known = self._made.get(key)
        if known is None or known[0] != version:
            known = (
                version,
                asyncio.get_running_loop().create_task(self._render(key, authorization, client)),
            )
            self._made[key] = known
        return await asyncio.shield(known[1])  # one viewer who leaves takes nothing from the others

    async def _render(self, key: Key, authorization: bytes, client: str) -> str | None:
        self.count += 1
        transport = httpx.ASGITransport(
            self._part(_SharedSession() if key.has_forms else None),
            raise_app_exceptions=False,
            client=(client, 0),
        )
        headers = [(b"authorization", authorization), (WORKSPACE_HEADERS[0].encode(), key.workspace.encode())]
        try:
            async with (
                asyncio.timeout(_RENDER_S),
                httpx.AsyncClient(transport=transport, base_url="http://console") as http,
            ):
                answer = await http.get(key.address, headers=headers)
        except TimeoutError:
            return None
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        return json.dumps(answer.text) if answer.status_code == httpx.codes.OK and is_page else None

    def _part(self, session: _SharedSession | None) -> ASGIApp:
        async def asked(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app({**scope, "toque.session": session, PART: True}, receive, send)

        return asked


class _SharedSession:
    """Session of all viewers of a content, whose proof of forms is replaced by that of each."""

    csrf = _CSRF


class OpenPage:
    """Page that a viewer has open.

    request: of the stream that follows it, as it was admitted. address: path and query of the page. csrf: gives the proof of the
    viewer's forms; None if there is no session any more, empty without forms.
    """

    def __init__(
        self,
        request: Request,
        renderings: Renderings,
        address: str,
        *,
        workspace: str,
        csrf: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._request, self._renderings, self._csrf = request, renderings, csrf
        self.address, self.workspace = address, workspace

    async def show(self, version: str) -> str | None:
        """Get the page's content as JSON, at a version of its topics or later.

        None: it must be asked for, which tells the viewer why, as when the session ended or the token was revoked.
        """
        authorization = header(self._request, "authorization") or b""
        admission: Admission = self._request.app.state.admission
        csrf = await self._csrf()
        if csrf is None:
            return None
        try:
            principal = await admission.identify(authorization)
        except NotAdmitted:
            return None
        key = Key(self.address, self.workspace, principal.grants, bool(csrf))
        text = await self._renderings.get(key, version, authorization, client_of(self._request))
        return None if text is None else text.replace(_CSRF, csrf)
