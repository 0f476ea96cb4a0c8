"""Pages that sign people in and out, by a token, a single-use code or the organisation's own issuer, and their sessions.

The browser holds a random identifier. The store, for all gateways, holds under the identifier's hash the person's token encrypted
with a key made of the identifier, so neither who reads the store nor who reads a cookie's hash has the token. Each request
presents that token to the door again: a token that is revoked ends its sessions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from threading import Lock
from typing import Annotated, Any, Final

from anyio import to_thread
from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from toque.ray_apps.admission import OPEN, Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import client_of
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import (
    ANYBODY,
    CHANGE,
    PREFIX,
    SIGN_IN,
    Form,
    console_of,
    cookie_name,
    is_https,
    pages_router,
    safe_next,
    session_of,
)
from toque.ray_apps.oidc.code_flow import CodeFlow, PendingSignIn
from toque.registry import AlreadyExists, Clock, InvalidInput, ObjectStore, Unavailable, utc_now
from toque.registry.times import from_text, to_text

router = pages_router()
_BACK = f"{PREFIX}/oidc/callback"
_ISSUER_WAIT_S: Final = 600  # how long a sign-in at the issuer may take
Text = Annotated[str, Query(max_length=8_000)]
Next = Annotated[str, Query(max_length=2_000)]
SESSION_LIFETIME: Final = timedelta(hours=12)
CODE_LIFETIME: Final = timedelta(minutes=2)
REREAD_AFTER: Final = timedelta(seconds=5)
"""How long a session that another gateway ended may go on here."""
_SESSIONS, _CODES, _USED = "console/sessions/", "console/codes/", "console/used-codes/"
_BYTES, _NONCE_BYTES = 32, 12
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
"""Form of every session's identifier and every code; what has another is not looked for in the store."""
_SESSIONS_KEPT = 4_096


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


@dataclass(frozen=True, slots=True)
class Session:
    """Session of a person who signed in. id: what the cookie holds; token: presented to the doors; expires_at: end at the latest."""

    id: str
    token: str
    expires_at: datetime

    @property
    def csrf(self) -> str:
        """Text that every form of the session must send back."""
        return _derived(self.id, "csrf").hex()


class Sessions:
    """Sessions and sign-in codes in the platform's store; its methods block, but for `recall`, so they are for threads."""

    def __init__(self, store: ObjectStore, *, clock: Clock = utc_now) -> None:
        self._store, self._clock = store, clock
        self._read: LRUCache[str, tuple[datetime, Session]] = LRUCache(_SESSIONS_KEPT)
        self._lock = Lock()

    def start(self, token: str) -> Session:
        """Start a session under a new identifier, and remove the records of those that have expired."""
        self._sweep(_SESSIONS, SESSION_LIFETIME)
        session_id, expires_at = self._keep(_SESSIONS, token, SESSION_LIFETIME)
        return self._remember(Session(session_id, token, expires_at))

    def recall(self, session_id: str) -> Session | None:
        """Find a session that was read within seconds and has not expired; does not block."""
        now = self._clock()
        with self._lock:
            known = self._read.get(session_id)
        fresh = known is not None and now - known[0] < REREAD_AFTER and now < known[1].expires_at
        return known[1] if known is not None and fresh else None

    def find(self, session_id: str) -> Session | None:
        """Find a session that has neither ended nor expired."""
        known = self.recall(session_id)
        if known is not None:
            return known
        found = self._open(_SESSIONS, session_id)
        if found is None:
            self._forget(session_id)
            return None
        return self._remember(Session(session_id, *found))

    def has_met(self, session_id: str) -> bool:
        """Whether a session was found here before, so that looking for it again is no guess; does not block."""
        return session_id in self._read

    def end(self, session_id: str) -> None:
        """End a session; other gateways follow within seconds."""
        self._forget(session_id)
        self._store.delete(_key(_SESSIONS, session_id))

    def make_code(self, token: str) -> tuple[str, datetime]:
        """Make a code that signs the token's owner in once; returns it with the time until which it counts."""
        for prefix in (_CODES, _USED):
            self._sweep(prefix, 2 * CODE_LIFETIME)
        return self._keep(_CODES, token, CODE_LIFETIME)

    def redeem(self, code: str) -> str | None:
        """Use a code up; returns its token, or None if it is unknown, expired or was used before."""
        found = self._open(_CODES, code)
        if found is None:
            return None
        try:
            self._store.create(_key(_USED, code), b"{}")  # of two who hold the code, one wins
        except AlreadyExists:
            return None
        self._store.delete(_key(_CODES, code))
        return found[0]

    def _remember(self, session: Session) -> Session:
        with self._lock:
            self._read[session.id] = (self._clock(), session)
        return session

    def _forget(self, session_id: str) -> None:
        with self._lock:
            self._read.pop(session_id, None)

    def _keep(self, prefix: str, token: str, lifetime: timedelta) -> tuple[str, datetime]:
        secret, nonce = secrets.token_urlsafe(_BYTES), secrets.token_bytes(_NONCE_BYTES)
        expires_at = self._clock() + lifetime
        sealed = nonce + AESGCM(_derived(secret, prefix)).encrypt(nonce, token.encode(), None)
        record = {"expires_at": to_text(expires_at), "sealed": sealed.hex()}
        self._store.create(_key(prefix, secret), json.dumps(record).encode())
        return secret, expires_at

    def _open(self, prefix: str, secret: str) -> tuple[str, datetime] | None:
        if not _SECRET.fullmatch(secret):
            return None
        data = self._store.find(_key(prefix, secret))
        if data is None:
            return None
        record = json.loads(data)
        sealed, expires_at = bytes.fromhex(record["sealed"]), from_text(record["expires_at"])
        if self._clock() >= expires_at:
            return None
        try:
            token = AESGCM(_derived(secret, prefix)).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None
            )
        except InvalidTag:
            return None
        return token.decode(), expires_at

    def _sweep(self, prefix: str, lifetime: timedelta) -> None:
        """Delete the records that are older than any that counts, by the store's clock."""
        before = self._store.now() - lifetime
        for each in list(self._store.scan(prefix)):
            if each.modified_at < before:
                self._store.delete(each.key)


Find = Callable[[str], Session | None]


def _key(prefix: str, secret: str) -> str:
    return f"{prefix}{hashlib.sha256(secret.encode()).hexdigest()}.json"


def _derived(secret: str, purpose: str) -> bytes:
    """Key for one purpose of a random secret, which needs no slow derivation."""
    return hmac.digest(secret.encode(), f"toque console: {purpose}".encode(), "sha256")
