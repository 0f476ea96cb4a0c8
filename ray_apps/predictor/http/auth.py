"""Authentication of the predictor's requests: a bearer token whose role allows predictions."""

from __future__ import annotations

from typing import Protocol

from ray_apps.predictor.protocol.errors import Denied, NotReady
from ray_apps.token_cache import TokenCache, bearer_token
from registry import Role, Unavailable

__all__ = ["Authenticator", "NoAuthentication", "TokenAuthenticator"]


class Authenticator(Protocol):
    """Decides whether a request may be answered, by its Authorization header."""

    async def admit(self, authorization: bytes | None) -> None:
        """Admit the request, or raise its refusal. Raises: Denied, NotReady."""
        ...


class NoAuthentication:
    """Admits every request, for platforms whose operator switched authentication off."""

    async def admit(self, authorization: bytes | None) -> None:
        """Admit the request, whatever its header says."""


class TokenAuthenticator:
    """Admits requests whose token has the role `caller`."""

    def __init__(self, tokens: TokenCache) -> None:
        self._tokens = tokens

    async def admit(self, authorization: bytes | None) -> None:
        """Admit the request if its Authorization header has an accepted token.

        Raises: Denied (401 without a valid token, 403 for too low a role); NotReady if the store does not
        answer and the token is not known.
        """
        if not authorization:
            raise Denied("authorization: missing; send 'Authorization: Bearer <token>'")
        token = bearer_token(authorization)
        try:
            principal = await self._tokens.principal(token) if token else None
        except Unavailable as error:
            raise NotReady(f"authorization: {error}") from error
        if principal is None:
            raise Denied("authorization: the token is unknown, expired or revoked; ask an admin for one")
        if not principal.may(Role.caller):
            raise Denied("authorization: the token's role may not predict; it takes 'caller'", status=403)
