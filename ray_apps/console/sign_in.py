"""Pages that sign people in and out, by a token, a single-use code or the organisation's own issuer."""

from __future__ import annotations

import base64
import binascii
from http import HTTPStatus
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from toque.ray_apps.admission import OPEN, Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import client_of
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import (
    PREFIX,
    SIGN_IN,
    Anybody,
    Form,
    Sent,
    console_of,
    cookie_name,
    is_https,
    pages_router,
    safe_next,
    session_of,
)
from toque.ray_apps.console.sessions import SESSION_LIFETIME
from toque.ray_apps.oidc.code_flow import CodeFlow, PendingSignIn
from toque.registry import InvalidInput, Unavailable

router = pages_router()
_BACK = f"{PREFIX}/oidc/callback"
_ISSUER_WAIT_S: Final = 600  # how long a sign-in at the issuer may take
Text = Annotated[str, Query(max_length=8_000)]
Next = Annotated[str, Query(max_length=2_000)]


@router.get("/oidc/start", dependencies=[OPEN])
async def start(
    request: Request,
    next: Next = "",  # noqa: A002  # the parameter's usual name
    another: Annotated[bool, Query()] = False,  # noqa: FBT002  # of an address
) -> Response:
    """Send the browser to the issuer, with the secrets of this sign-in in a cookie. another: who is signed in there is asked again."""
    flow, to = _flow_of(request), safe_next(next)
    try:
        address, pending = await to_thread.run_sync(
            lambda: flow.begin(_redirect_uri(request), to, another=another)
        )
    except Unavailable as error:
        raise NotAdmitted(503, str(error), retry_after_s=2) from error
    answer = RedirectResponse(address, 303)
    packed = base64.urlsafe_b64encode(pending.model_dump_json().encode()).decode()
    answer.set_cookie(_cookie(request), packed, max_age=_ISSUER_WAIT_S, **_cookie_options(request))
    return answer


@router.get("/oidc/callback", dependencies=[OPEN])
async def come_back(request: Request, state: Text = "", code: Text = "", error: Text = "") -> Response:
    """Exchange the issuer's code for a token, and start a session with it."""
    flow, pending = _flow_of(request), _pending(request)
    if error or not code:
        raise NotAdmitted(403, f"the issuer did not sign you in: {error[:200] or 'it sent no code'}")
    try:
        token = await to_thread.run_sync(
            lambda: flow.finish(pending, state=state, code=code, redirect_uri=_redirect_uri(request))
        )
    except InvalidInput as refusal:
        raise NotAdmitted(403, str(refusal)) from refusal
    except Unavailable as away:
        raise NotAdmitted(503, str(away), retry_after_s=2) from away
    answer = await signed_in(request, token, safe_next(pending.next))
    answer.delete_cookie(_cookie(request), **_cookie_options(request))
    return answer


@router.get("/oidc/end", dependencies=[OPEN])
async def end(request: Request) -> Response:
    """Lead the browser to where the issuer ends its own session, once the console's has ended.

    By a page, as `form-action` holds for where a form's answer redirects to.
    """
    try:
        address = await to_thread.run_sync(_flow_of(request).end_address)
    except Unavailable as error:
        raise NotAdmitted(503, str(error), retry_after_s=2) from error
    answer = await Page(request, console_of(request)).render("signed_out.html", address=address)
    if address is not None:
        answer.headers["Refresh"] = f"0; url={address}"
    return answer


@router.get("/static/{name}", dependencies=[OPEN])
async def get_asset(request: Request, name: str) -> Response:
    """Serve a file that pages load."""
    return console_of(request).assets.respond(name, request)


@router.get("/sign-in", dependencies=[OPEN])
async def show_sign_in(request: Request, next: Next = "") -> Response:  # noqa: A002  # the parameter's usual name
    """Show the form that takes a token."""
    page = Page(request, console_of(request))
    return await page.render("sign_in.html", ended=False, needed=False, next=safe_next(next))


@router.post("/sign-in", dependencies=[OPEN])
async def sign_in(request: Request, form: Annotated[Form, SIGN_IN]) -> Response:
    """Start a session for the token's owner and go to the page that was asked for."""
    return await signed_in(request, form.get("token", "").strip(), safe_next(form.get("next")))


@router.get("/enter", dependencies=[OPEN])
async def show_enter(
    request: Request,
    code: Annotated[str, Query(max_length=64)] = "",
    next: Next = "",  # noqa: A002
) -> Response:
    """Ask before a code is used, so that no link of a stranger signs anybody in as the stranger."""
    page = Page(request, console_of(request))
    return await page.render("enter.html", code=code, next=safe_next(next))


@router.post("/enter", dependencies=[OPEN])
async def enter(request: Request, form: Annotated[Form, SIGN_IN]) -> Response:
    """Start a session for the owner of the token behind a single-use code."""
    token = await to_thread.run_sync(console_of(request).sessions.redeem, form.get("code", ""))
    if token is None:
        raise NotAdmitted(403, "code: unknown, expired or used before; `toque ui` makes a new one")
    return await signed_in(request, token, safe_next(form.get("next")))


@router.post("/sign-out")
async def sign_out(page: Anybody, _: Sent) -> Response:
    """End the viewer's session at every gateway, and go on to the issuer that the viewer signed in at."""
    request = page.request
    session = session_of(request)
    await to_thread.run_sync(console_of(request).sessions.end, session.id)
    issued = console_of(request).oidc is not None and "." in session.token  # tokens of the list have no dots
    answer = (
        page.go(f"{PREFIX}/oidc/end")
        if issued
        else page.go(f"{PREFIX}/sign-in", notice="You have signed out.")
    )
    answer.delete_cookie(cookie_name(request), path="/", secure=is_https(request), httponly=True)
    return answer


async def signed_in(request: Request, token: str, to: str) -> Response:
    """Start a session under a new identifier; one that the browser had before ends."""
    console, admission = console_of(request), request.app.state.admission
    page = Page(request, console)
    try:
        await _identify(admission, token)
    except NotAdmitted as refusal:
        admission.note(
            refusal, who=None, what=f"POST {request.url.path}", workspace=None, client=client_of(request)
        )
        status = HTTPStatus.FORBIDDEN if refusal.status == HTTPStatus.UNAUTHORIZED else refusal.status
        return await page.render(
            "sign_in.html", status, ended=False, needed=False, next=to, refusal=str(refusal)
        )
    before = session_of(request)
    if before is not None:
        await to_thread.run_sync(console.sessions.end, before.id)
    session = await to_thread.run_sync(console.sessions.start, token)
    answer = page.go(to)
    answer.set_cookie(
        cookie_name(request),
        session.id,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        httponly=True,
        secure=is_https(request),
        samesite="lax",
        path="/",
    )
    return answer


def _flow_of(request: Request) -> CodeFlow:
    flow = console_of(request).oidc
    if flow is None:
        raise NotAdmitted(404, "no issuer signs people in here; TOQUE_OIDC has no client")
    return flow


def _pending(request: Request) -> PendingSignIn:
    """Read the secrets of the sign-in that this browser began. Raises: NotAdmitted 403."""
    try:
        packed = base64.urlsafe_b64decode(request.cookies.get(_cookie(request), ""))
        return PendingSignIn.model_validate_json(packed)
    except (binascii.Error, ValidationError, ValueError) as error:
        raise NotAdmitted(403, "this browser began no sign-in, or too long ago; begin again") from error


def _redirect_uri(request: Request) -> str:
    """Address of the page that takes the browser back, which the issuer must know."""
    scheme = "https" if is_https(request) else "http"
    return f"{scheme}://{request.headers.get('host', '')}{_BACK}"


def _cookie(request: Request) -> str:
    return "__Host-toque-sign-in" if is_https(request) else "toque-sign-in"


def _cookie_options(request: Request) -> dict[str, Any]:
    return {"path": "/", "secure": is_https(request), "httponly": True, "samesite": "lax"}


async def _identify(admission: Admission, token: str) -> None:
    """Check that a token is valid. Raises: NotAdmitted."""
    if not token or not token.isascii() or not token.isprintable():
        raise NotAdmitted(401, "token: empty or none of ours; `toque access token create` makes one")
    await admission.identify(f"Bearer {token}".encode("latin-1"))
