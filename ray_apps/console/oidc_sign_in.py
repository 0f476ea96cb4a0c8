"""Pages that sign a person in at the organisation's own issuer, and take the browser back from there."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from toque.ray_apps.admission import OPEN, NotAdmitted
from toque.ray_apps.console.origins import is_https, safe_next
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import PREFIX, console_of, pages_router
from toque.ray_apps.console.sign_in import signed_in
from toque.ray_apps.oidc.code_flow import CodeFlow, PendingSignIn
from toque.registry import InvalidInput, Unavailable

router = pages_router()

_BACK = f"{PREFIX}/oidc/callback"
_WAIT_S: Final = 600
Text = Annotated[str, Query(max_length=8_000)]


@router.get("/oidc/start", dependencies=[OPEN])
async def start(
    request: Request,
    next: Annotated[str, Query(max_length=2_000)] = "",  # noqa: A002  # the parameter's usual name
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
    answer.set_cookie(_cookie(request), packed, max_age=_WAIT_S, **_cookie_options(request))
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
