"""Authentication and authorisation of the gateway's requests: bearer tokens, and the role that a route requires."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_apps.gateway.problems import Problem
from ray_apps.token_cache import TokenCache
from registry import Principal, Role

bearer = HTTPBearer(auto_error=False, description="A token from `toque token create`")


def allowed(role: Role) -> Any:
    """Make a FastAPI dependency that yields the request's principal if its role is at least `role`.

    Raises: Problem 401 without a live token, 403 for too low a role.
    """

    async def principal(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Principal:
        found = await identify(request, credentials.credentials if credentials else None)
        if not found.may(role):
            raise Problem(403, f"{found.name} has {found.roles}; this needs {role.name}")
        return found

    return Depends(principal)


async def identify_bearer(request: Request) -> Principal:
    """Identify the caller of a request that no route has identified. Raises: Problem 401."""
    credentials = await bearer(request)
    return await identify(request, credentials.credentials if credentials else None)


async def identify(request: Request, token: str | None) -> Principal:
    """Find the principal of a bearer token. Raises: Problem 401; Unavailable."""
    headers = {"WWW-Authenticate": "Bearer"}
    if not token:
        raise Problem(401, "send `Authorization: Bearer <token>`; `toque token` makes one", headers=headers)
    tokens: TokenCache = request.app.state.tokens
    principal = await tokens.principal(token)
    if principal is None:
        raise Problem(401, "the token is unknown, expired or revoked", headers=headers)
    return principal
