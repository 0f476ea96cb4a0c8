"""Pages that sign a person in and out: by a token, or by the single-use code that `toque ui` makes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from toque.ray_apps.admission import OPEN, Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import client_of
from toque.ray_apps.console.origins import is_https, safe_next
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import (
    ANYBODY,
    CHANGE,
    PREFIX,
    SIGN_IN,
    Form,
    console_of,
    cookie_name,
    pages_router,
    session_of,
)
from toque.ray_apps.console.sessions import SESSION_LIFETIME

router = pages_router()

Next = Annotated[str, Query(max_length=2_000)]


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
async def sign_out(page: Annotated[Page, ANYBODY], _: Annotated[Form, CHANGE]) -> Response:
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


async def _identify(admission: Admission, token: str) -> None:
    """Check that a token is valid. Raises: NotAdmitted."""
    if not token or not token.isascii() or not token.isprintable():
        raise NotAdmitted(401, "token: empty or none of ours; `toque token create` makes one")
    await admission.identify(f"Bearer {token}".encode("latin-1"))
