"""Routes of pages: a session's cookie instead of a bearer token, proof that a form is ours, errors as pages.

A page declares who may see it as every route of the platform does, and is admitted by the same rules.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from toque.ray_apps.admission import ANY_MODEL, GuardedRoute, NotAdmitted, allowed
from toque.ray_apps.admission.guarded_route import Handler, client_of
from toque.ray_apps.admission.request_limits import TooManyRequests, network_of
from toque.ray_apps.console.page import ApiError, Console, Page
from toque.registry import Limits, Principal, Role

PREFIX: Final = "/ui"
HOME: Final = "/ui/"
STRANGERS_FORM_BYTES: Final = 4 << 10
"""Size of a form that is read before it is known who sends it: a token or a code, and where to go."""
STRANGERS_LIMITS: Final = Limits(rate_per_s=50)
"""Requests of one address without a session that this gateway has met, as each may cost a read of the store."""
_STRANGERS_PATIENCE_S = 10.0
_MAX_FIELDS = 200
_TOO_LARGE = HTTPException(
    413,
    f"form: larger than {STRANGERS_FORM_BYTES} bytes; send a token as `toque access token create` made it",
)
_logger = logging.getLogger(__name__)

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SANDBOX: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""Policy of a page that a function wrote: without scripts, which could send what it shows elsewhere by leading the browser there."""
FRAMED_SANDBOX: Final = SANDBOX.replace("sandbox;", "sandbox allow-scripts; script-src 'unsafe-inline';")
"""Policy of such a page in a frame of ours: its scripts run without an origin, load and request nothing, and the frame goes nowhere.

No policy of a page stops WebRTC or the look-up of a name.
"""
FRAME_POLICY: Final = f"{POLICY}; frame-src 'self'"
"""Policy of our page around that frame, which bounds where the frame goes."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_INSIDE = re.compile(r"/(?:workspaces/[a-z0-9-]{1,63}/)?ui(?:/[^\\\x00-\x20]*)?(?:\?[^\\\x00-\x20]*)?\Z")


class Form(dict[str, str]):
    """Fields of a form that was checked to be one of ours; of a field that is sent twice, the last."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__(fields)
        self.fields = fields

    def all(self, name: str) -> list[str]:
        """List every value of a field that may be sent several times, as checkboxes are."""
        return [value for field, value in self.fields if field == name]


def page_for(*roles: Role, model: str | None = None) -> Any:
    """Require one of `roles` to see a page; a FastAPI dependency that gives the handler its `Page`.

    model: as `allowed` has it.
    """
    admitted = allowed(*roles, model=model)

    async def page(request: Request, _: Principal = admitted) -> Page:
        return Page(request, console_of(request))

    return Depends(page)


ANYBODY: Final = page_for(*Role, model=ANY_MODEL)
"""A page for everybody who has signed in."""
Viewer: TypeAlias = Annotated[Page, page_for(Role.viewer)]
Operator: TypeAlias = Annotated[Page, page_for(Role.operator)]
Approver: TypeAlias = Annotated[Page, page_for(Role.approver)]
Admin: TypeAlias = Annotated[Page, page_for(Role.admin)]
Anybody: TypeAlias = Annotated[Page, ANYBODY]
"""Pages by who may see them."""


class _FormCheck:
    """Dependency of a route that changes something: refuses a form that no page of ours has sent."""

    def __init__(self, *, in_session: bool) -> None:
        self._in_session = in_session

    async def __call__(self, request: Request) -> Form:
        """Parse the form that a request sends. Raises: NotAdmitted 403 if another site, or no page of the session, sent it."""
        if from_elsewhere(request):
            raise NotAdmitted(403, "form: sent by a page of another site; open the console and try again")
        body = await (request.body() if self._in_session else _read_small(request))
        text = body.decode("utf-8", "replace")
        try:
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"form: {error}") from error
        form = Form(fields)
        if self._in_session:
            session = session_of(request)
            sent = form.get("csrf", "").encode()
            if session is None or not hmac.compare_digest(sent, session.csrf.encode()):
                raise NotAdmitted(403, "csrf: missing or of another session; reload the page and try again")
        return form


async def _read_small(request: Request) -> bytes:
    """Read the form of somebody who has not signed in, piece by piece, and no more of it than it may have.

    Raises: HTTPException 413 or 408.
    """
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        async with asyncio.timeout(_STRANGERS_PATIENCE_S):
            if not declared.isdigit() or int(declared) > STRANGERS_FORM_BYTES:
                raise _TOO_LARGE
            async for piece in request.stream():
                body += piece
                if len(body) > STRANGERS_FORM_BYTES:
                    raise _TOO_LARGE
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT,
            f"form: did not come within {_STRANGERS_PATIENCE_S:g} s; send it again",
        ) from None
    return bytes(body)


CHANGE: Final = Depends(_FormCheck(in_session=True))
"""Gives the `Form` of a signed-in person, which a page of the same session must have sent."""
Sent: TypeAlias = Annotated[Form, CHANGE]
SIGN_IN: Final = Depends(_FormCheck(in_session=False))
"""Gives the `Form` of somebody who has not signed in yet."""


class ConsoleRoute(GuardedRoute):
    """Route that answers with a page. Raises: TypeError when one that changes something is declared without `CHANGE` or `SIGN_IN`."""

    def get_route_handler(self) -> Handler:
        """Wrap the guarded handler: before it the session is found, after it errors become pages."""
        if not (self.methods or set()) <= {"GET", "HEAD"} and not _checks_form(self.dependant):
            raise TypeError(f"{self.methods} {self.path} changes something; declare CHANGE or SIGN_IN")
        guarded = super().get_route_handler()

        async def answer(request: Request) -> Response:
            console = console_of(request)
            try:
                request = await _in_session(request, console)
                response = await guarded(request)
            except Exception as error:  # noqa: BLE001  # every error becomes a page, and is logged
                response = await _error_page(request, console, error)
            _protect(response, request)
            return response

        return answer


def pages_router() -> APIRouter:
    """Make the router of a module of pages; its paths are those below `/ui`."""
    return APIRouter(prefix=PREFIX, route_class=ConsoleRoute, include_in_schema=False)


def console_of(request: Request) -> Console:
    """Get the console that a request is for."""
    found: Console = request.app.state.console
    return found


def session_of(request: Request) -> Any:
    """Get the session of a request; None without one."""
    return request.scope.get("toque.session")


async def proof_of_forms(request: Request) -> str | None:
    """Get what proves the forms of a request's session, as it stands now; None if it has ended, empty if the request had none."""
    session = session_of(request)
    if session is None:
        return ""
    found = await console_of(request).find_session(session.id)
    return None if found is None else found.csrf


def cookie_name(request: Request) -> str:
    """Name of the session's cookie; over TLS one that the browser takes from this host alone."""
    return "__Host-toque-session" if is_https(request) else "toque-session"


def _checks_form(dependant: Dependant) -> bool:
    return any(
        isinstance(dependency.call, _FormCheck) or _checks_form(dependency)
        for dependency in dependant.dependencies
    )


async def _in_session(request: Request, console: Console) -> Request:
    """Present the token of the cookie's session, unless the request has a token of its own.

    Raises: NotAdmitted 429 where its address sends too many without either.
    """
    if "authorization" in request.headers or request.url.path.startswith(f"{PREFIX}/static/"):
        return request
    cookie = request.cookies.get(cookie_name(request), "")
    if not console.sessions.has_met(cookie):
        _count_stranger(request, console)
    if not cookie:
        return request
    session = await console.find_session(cookie)
    if session is None:
        return request
    headers = [*request.scope["headers"], (b"authorization", f"Bearer {session.token}".encode("latin-1"))]
    return Request({**request.scope, "headers": headers, "toque.session": session}, request.receive)


def _count_stranger(request: Request, console: Console) -> None:
    """Count a request of an address from which nobody has signed in here. Raises: NotAdmitted 429."""
    client = client_of(request)
    try:
        console.strangers.take((f"address {network_of(client)}", STRANGERS_LIMITS))
    except TooManyRequests as error:
        refusal = NotAdmitted(HTTPStatus.TOO_MANY_REQUESTS, str(error), retry_after_s=error.retry_after_s)
        what = f"{request.method} {request.url.path}"
        request.app.state.admission.note(refusal, who=None, what=what, workspace=None, client=client)
        raise refusal from error


async def _error_page(request: Request, console: Console, error: Exception) -> Response:
    status, detail, headers = _told(error, request)
    page = Page(request, console)
    if status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
        ended = session_of(request) is not None or cookie_name(request) in request.cookies
        answer = await page.render("sign_in.html", status, ended=ended, next=page.here, needed=True)
    else:
        answer = await page.render("error.html", status, detail=detail, phrase=HTTPStatus(status).phrase)
    answer.headers.update(headers)
    return answer


def _told(error: Exception, request: Request) -> tuple[int, str, Mapping[str, str]]:
    """Status, words and headers of the page for an error."""
    if isinstance(error, NotAdmitted):
        return int(error.status), str(error), error.headers
    if isinstance(error, ApiError):
        return error.status, error.detail, {}
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), error.headers or {}
    if isinstance(error, RequestValidationError):
        told = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return HTTPStatus.UNPROCESSABLE_ENTITY, told, {}
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, "the page failed; the gateway's log says why", {}


def _protect(response: Response, request: Request) -> None:
    """Add the headers that keep a page to itself; over TLS also the one that keeps it there."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    if is_https(request):
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")


@dataclass(frozen=True, slots=True)
class Entry:
    """Link to a page in the navigation. title: its text; path: first part of the address; role: who may follow it."""

    title: str
    path: str
    role: str = "viewer"


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
