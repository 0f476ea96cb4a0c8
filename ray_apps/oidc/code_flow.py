"""Sign-in of a person at the issuer: the authorization-code flow with PKCE, which ends with a signed ID token.

Source: OpenID Connect Core 1.0, 3.1; RFC 7636.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from pydantic import BaseModel, ConfigDict

from toque.ray_apps.oidc.settings import OidcClient, OidcSettings, check_url
from toque.ray_apps.oidc.verifier import Json, discovery, fetch_json
from toque.registry import InvalidInput, Unavailable

Post = Callable[[str, Mapping[str, str], tuple[str, str] | None], Json]
_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 256 * 1024


class PendingSignIn(BaseModel):
    """Secrets of a sign-in that is under way, which the browser keeps until it comes back from the issuer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str
    nonce: str
    verifier: str
    next: str


class CodeFlow:
    """Flow by which a browser gets an ID token; its methods block, so they are for threads.

    fetch: reads the JSON object at a URL; post: sends a form with the client's name and secret, reads a JSON object.
    """

    def __init__(
        self,
        settings: OidcSettings,
        client: OidcClient,
        *,
        fetch: Callable[[str], Json] = fetch_json,
        post: Post | None = None,
    ) -> None:
        self._settings, self._client = settings, client
        self._fetch, self._post = fetch, post or post_form

    def begin(self, redirect_uri: str, to: str, *, another: bool = False) -> tuple[str, PendingSignIn]:
        """Make the issuer's address to which the browser goes.

        to: page to end at. another: have the issuer ask who it is, even if somebody is signed in there. Raises: Unavailable.
        """
        pending = PendingSignIn(
            state=secrets.token_urlsafe(24), nonce=secrets.token_urlsafe(24), verifier=secrets.token_urlsafe(48), next=to
        )  # fmt: skip
        challenge = hashlib.sha256(pending.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._client.id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(dict.fromkeys(("openid", *self._client.scopes))),
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        if another:
            prompts = self._document().get("prompt_values_supported")
            can_select = isinstance(prompts, list) and "select_account" in prompts
            asked["prompt"] = "select_account" if can_select else "login"  # the latter every issuer knows
        return _with_query(self._endpoint("authorization_endpoint"), asked), pending

    def end_address(self) -> str | None:
        """Address at the issuer that ends its own session; None if it has no such. Raises: Unavailable.

        Without the ID token as a hint, which is a credential and must stand in no address; the issuer asks instead.
        Source: OpenID Connect RP-Initiated Logout 1.0, 2.
        """
        if self._document().get("end_session_endpoint") is None:
            return None
        return _with_query(self._endpoint("end_session_endpoint"), {"client_id": self._client.id})

    def finish(self, pending: PendingSignIn, *, state: str, code: str, redirect_uri: str) -> str:
        """Exchange the code that the browser brought for an ID token, which the doors verify like any other.

        Raises: InvalidInput if the answer is not to this sign-in; Unavailable.
        """
        if not hmac.compare_digest(state.encode(), pending.state.encode()):
            raise InvalidInput("state: the issuer's answer is not to this sign-in; begin again")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._client.id,
            "code_verifier": pending.verifier,
        }
        secret = self._client.secret
        own = None if secret is None else (self._client.id, secret.get_secret_value())
        try:
            found = self._post(self._endpoint("token_endpoint"), form, own)
        except ValueError as error:
            raise InvalidInput(f"the issuer gave no token: {error}") from error
        token = str(found.get("id_token", ""))
        if not hmac.compare_digest(_nonce_of(token).encode(), pending.nonce.encode()):
            raise InvalidInput("nonce: the issuer's token is of another sign-in; begin again")
        return token

    def _endpoint(self, name: str) -> str:
        """Address of an endpoint, by the issuer's discovery document. Raises: Unavailable."""
        try:
            return check_url(str(self._document().get(name)))
        except ValueError as error:
            raise Unavailable(f"the issuer {self._settings.issuer} has no {name}: {error}") from error

    def _document(self) -> Json:
        """Read the issuer's discovery document. Raises: Unavailable."""
        try:
            return discovery(self._settings, fetch=self._fetch)
        except ValueError as error:
            raise Unavailable(f"the issuer {self._settings.issuer} cannot be asked: {error}") from error


def _with_query(address: str, fields: Mapping[str, str]) -> str:
    return f"{address}{'&' if '?' in address else '?'}{urlencode(fields)}"


def _nonce_of(token: str) -> str:
    """Read the nonce of a token whose signature the doors check. Raises: InvalidInput if it is no token."""
    import jwt  # late: only where OIDC is configured

    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise InvalidInput(f"the issuer gave no ID token: {error}") from error
    return str(claims.get("nonce", ""))


def post_form(url: str, form: Mapping[str, str], own: tuple[str, str] | None) -> Json:
    """Send a form, and read the JSON object that comes back; no redirect is followed. Raises: ValueError.

    own: the client's name and secret, each form-encoded before they are joined (RFC 6749, 2.3.1).
    """
    import httpx  # late: as above

    auth = None if own is None else (quote_plus(own[0]), quote_plus(own[1]))
    try:
        answer = httpx.post(url, data=dict(form), auth=auth, timeout=_TIMEOUT_S, follow_redirects=False)
        if len(answer.content) > _MAX_BYTES:
            raise ValueError(f"{url} answers more than {_MAX_BYTES} bytes")
        found = answer.json()
    except httpx.HTTPError as error:
        raise ValueError(f"{url}: {type(error).__name__}: {error}") from error
    if answer.status_code != httpx.codes.OK or not isinstance(found, dict):
        told = found.get("error", "") if isinstance(found, dict) else ""
        raise ValueError(f"{url} answers {answer.status_code} {told}".rstrip())
    return found
