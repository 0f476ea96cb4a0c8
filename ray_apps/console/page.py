"""A page that is being made: who looks at it, where, what they may do, and the platform's HTTP API asked in their name."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import httpx
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from toque.functions.pages import STATIC, make_templates
from toque.ray_apps.admission import Admitted, RequestLimits
from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS, client_of, header
from toque.ray_apps.console.live import PART, LiveChanges, Renderings
from toque.ray_apps.console.sessions import Session, Sessions
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.oidc.code_flow import CodeFlow
from toque.ray_apps.token_cache import bearer_token
from toque.registry import DEFAULT_WORKSPACE, Clock, ObjectStore, Role, Unavailable, utc_now

_WORKSPACE_HEADER = WORKSPACE_HEADERS[0]
STATIC_FOLDERS: Final = (Path(__file__).with_name("static"), STATIC)
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_RECHECKED = "public, no-cache"
THEMES: Final = ("light", "dark")
_NOTICE_COOKIE, _THEME_COOKIE = "toque-notice", "toque-theme"
_NOTICE_S = 30
_MAX_NOTICE_BYTES = 2_048  # a browser keeps cookies of 4 kB
T = TypeVar("T")
Told = list[dict[str, Any]] | str
"""What the API lists, or its words why it does not."""


class Page:
    """A page for one request: its viewer, workspace and links; `api` asks the platform in the viewer's name."""

    def __init__(self, request: Request, console: Console) -> None:
        self.request, self._console = request, console
        self.admitted: Admitted | None = getattr(request.state, "admitted", None)

    @property
    def api(self) -> Api:
        """The platform's API, asked in the viewer's name in the page's workspace."""
        token = bearer_token(header(self.request, "authorization")) or ""
        return Api(
            self.request.app, token, workspace=self.workspace, client=client_of(self.request) or "console"
        )

    @property
    def workspace(self) -> str:
        """Workspace that the page shows."""
        return self.admitted.workspace if self.admitted else DEFAULT_WORKSPACE

    @property
    def viewer(self) -> str | None:
        """Name of the person who looks at the page; None before signing in."""
        return self.admitted.principal.name if self.admitted else None

    @property
    def now(self) -> datetime:
        """Time by the platform's clock, in UTC."""
        return self._console.clock()

    @property
    def root(self) -> str:
        """Path below which the links of this page lie: in its workspace."""
        named = str(self.request.scope.get("root_path", ""))
        if named or self.workspace != DEFAULT_WORKSPACE:
            return f"/workspaces/{self.workspace}/ui"
        return "/ui"

    @property
    def here(self) -> str:
        """Path and query of this page, for a form that leads back to it."""
        query = self.request.url.query
        return self.request.url.path + (f"?{query}" if query else "")

    @property
    def is_part(self) -> bool:
        """Whether the content alone is asked for, which takes the place of that of an open page."""
        return bool(self.request.scope.get(PART))

    @property
    def theme(self) -> str:
        """Colours that the viewer chose; empty: those of the system."""
        chosen = self.request.cookies.get(_THEME_COOKIE, "")
        return chosen if chosen in THEMES else ""

    @property
    def csrf(self) -> str:
        """Text that every form of the page sends back; empty without a session."""
        session = self.request.scope.get("toque.session")
        return "" if session is None else str(session.csrf)

    def may(self, role: str, model: str | None = None) -> bool:
        """Whether the viewer may do in this workspace what `role` does; what one may not do is not offered."""
        return self.admitted is not None and self.admitted.may(Role.parse(role), model=model)

    def link(self, *parts: Any, **query: Any) -> str:
        """Path of a page of this workspace, as `link("models", name)`; query values that are None are left out."""
        return self._console.link(self.root, *parts, **query)

    def is_in(self, path: str) -> bool:
        """Whether this page lies below an entry of the navigation; only the home page lies in the empty one."""
        below = self.request.url.path.removeprefix(self.root).strip("/")
        return below == path or (bool(path) and below.startswith(f"{path}/"))

    @staticmethod
    def quoted(part: object) -> str:
        """Quote a text as one part of an API's path."""
        return quote(str(part), safe="")

    def changed(self, **query: Any) -> str:
        """Address of this page with some query values replaced; None removes one."""
        kept = {**dict(self.request.query_params), **query}
        given = {name: value for name, value in kept.items() if value is not None}
        path = self.request.url.path
        return f"{path}?{urlencode(given)}" if given else path

    async def render(
        self,
        template: str,
        status: int = HTTPStatus.OK,
        *,
        live: Sequence[str] = (),
        error: str = "",
        **values: Any,
    ) -> Response:
        """Render a template as this page's response.

        live: topics whose changes the open page follows, as of `live`. error: told above the page instead of what the page before
        had to tell.
        """
        kind, notice = ("error", error) if error else self._notice()
        text = self._console.templates.get_template(template).render(
            page=self,
            entries=self._console.entries,
            asset=self._console.assets.path,
            workspaces=await self._workspaces(),
            notice=notice,
            notice_kind=kind,
            live_topics=" ".join(live),
            has_issuer=self._console.oidc is not None,
            **values,
        )
        answer = HTMLResponse(text, status)
        if notice:
            answer.delete_cookie(_NOTICE_COOKIE, path="/")
        return answer

    @staticmethod
    async def told(asked: Coroutine[Any, Any, T]) -> T | str:
        """Await what the API gives; where it refuses or fails, its words, as the rest of the page can be shown."""
        try:
            return await asked
        except ApiError as error:
            return error.detail

    async def change(self, to: str, done: str, method: str, path: str, body: Any = None, /) -> Response:
        """Send a change to the API and go to `to`, which tells `done` or the API's refusal."""
        try:
            await self.api.send(method, path, body)
        except ApiError as error:
            return self.go(to, notice=error.detail, kind="error")
        return self.go(to, notice=done)

    def go(self, to: str, *, notice: str = "", kind: str = "done") -> Response:
        """Send the browser to another page, which shows the notice once."""
        answer = RedirectResponse(to, HTTPStatus.SEE_OTHER)
        if notice:
            packed = base64.urlsafe_b64encode(f"{kind} {notice}".encode()[:_MAX_NOTICE_BYTES]).decode()
            answer.set_cookie(
                _NOTICE_COOKIE, packed, max_age=_NOTICE_S, httponly=True, samesite="lax", path="/"
            )
        return answer

    def _notice(self) -> tuple[str, str]:
        """Kind and text of what the page before this one had to tell."""
        try:
            packed = self.request.cookies.get(_NOTICE_COOKIE, "")
            kind, _, text = base64.urlsafe_b64decode(packed).decode("utf-8", "ignore").partition(" ")
        except (binascii.Error, ValueError):
            return "", ""
        return kind if kind in {"done", "error"} else "done", text

    async def _workspaces(self) -> list[str]:
        """Names of the workspaces that the viewer may switch to."""
        if self.admitted is None or self.is_part:
            return []
        try:
            found = await self.api.get("/workspaces")
        except ApiError:
            return [self.workspace]
        return sorted(each["name"] for each in found)


class Console:
    """Parts that all pages share: sessions, templates, files to load, and entries of the navigation."""

    def __init__(
        self,
        app: ASGIApp,
        store: ObjectStore,
        *,
        assets: Assets,
        entries: Sequence[object],
        redis_url: str | None = None,
        oidc: OidcSettings | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.clock = clock
        self.live = LiveChanges(store, redis_url)
        self.renderings = Renderings(app)
        self.oidc = None if oidc is None or oidc.client is None else CodeFlow(oidc, oidc.client)
        self.sessions = Sessions(store, clock=clock)
        self.strangers = RequestLimits()
        self.templates = make_templates(Path(__file__).with_name("templates"))
        self.assets, self.entries = assets, entries

    async def find_session(self, session_id: str) -> Session | None:
        """Find a session; None if it ended, expired, or the store does not answer."""
        known = self.sessions.recall(session_id)
        if known is not None:
            return known
        try:
            return await to_thread.run_sync(self.sessions.find, session_id)
        except Unavailable:
            return None

    @staticmethod
    def link(root: str, *parts: Any, **query: Any) -> str:
        """Path of a page below `root`, each part quoted."""
        path = "/".join((root, *(quote(str(part), safe="") for part in parts))) if parts else f"{root}/"
        given = {name: value for name, value in query.items() if value is not None}
        return f"{path}?{urlencode(given)}" if given else path


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str
    digest: str


class Assets:
    """The files that pages load, read once. An address with a file's digest may be kept for ever; any other is rechecked."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._assets = {
            path.name: _Asset(content, _TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])
            for folder in STATIC_FOLDERS
            for path in folder.iterdir()
            if path.suffix in _TYPES
            for content in [path.read_bytes()]
        }

    def path(self, name: str) -> str:
        """Address of a file, which changes with its content."""
        return f"{self._prefix}/{name}?v={self._assets[name].digest}"

    def respond(self, name: str, request: Request) -> Response:
        """Answer a request for a file: 404 for an unknown one, 304 for one that the browser has."""
        asset = self._assets.get(name)
        if asset is None:
            return Response(status_code=404)
        tag = f'"{asset.digest}"'
        is_named = request.query_params.get("v") == asset.digest
        headers = {"ETag": tag, "Cache-Control": _FOR_EVER if is_named else _RECHECKED}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)


class ApiError(Exception):
    """Refusal or failure of an API call. status: of the response; detail: the API's own words."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Api:
    """Calls of one viewer in one workspace; every door's rules hold as for any client.

    app: the gateway's application. token: the viewer's. client: address that the viewer asks from, for the audit.
    """

    def __init__(self, app: ASGIApp, token: str, *, workspace: str, client: str) -> None:
        self._app, self._client = app, client
        own = {"Accept-Encoding": "identity"}  # nothing is compressed on the way within a process
        self._headers = {"Authorization": f"Bearer {token}", _WORKSPACE_HEADER: workspace, **own}

    async def get(self, path: str, /, **query: Any) -> Any:
        """Get the JSON of a path; query values that are None are left out. Raises: ApiError."""
        given = {name: value for name, value in query.items() if value is not None}
        return (await self._send("GET", path, params=given)).json()

    async def download(self, path: str, /) -> bytes:
        """Get the bytes of a file. Raises: ApiError."""
        return (await self._send("GET", path)).content

    async def find(self, path: str, /, **query: Any) -> Any:
        """Get the JSON of a path, or None if the API has nothing there. Raises: ApiError for any other refusal."""
        try:
            return await self.get(path, **query)
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise

    async def call(self, function: str, /, **arguments: Any) -> Any:
        """Get the result of a platform function. Raises: ApiError."""
        return (await self._send("POST", f"/functions/{function}", json=arguments)).json()

    async def submit(self, function: str, arguments: Any, /) -> Any:
        """Queue a durable invocation of a function; returns its state. Raises: ApiError."""
        later = {"Prefer": "respond-async"}
        return (
            await self._send("POST", f"/functions/{quote(function, safe='')}", json=arguments, headers=later)
        ).json()

    async def send(self, method: str, path: str, body: Any = None, /) -> Any:
        """Send a change; returns the JSON of the response, None if it has no body. Raises: ApiError."""
        answer = await self._send(method, path, json={} if body is None else body)
        return answer.json() if answer.content else None

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=(self._client, 0))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://console", headers=self._headers
        ) as http:
            answer = await http.request(method, path, **options)
        if answer.is_error:
            raise ApiError(answer.status_code, _detail(answer))
        return answer


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return answer.text[:500]
    return str(problem.get("detail", problem)) if isinstance(problem, dict) else str(problem)
