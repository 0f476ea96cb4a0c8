"""Who asks, and whether they may: a bearer token, looked up off the event loop, remembered for half a second."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_apps.gateway.problems import Problem
from ray_apps.gateway.services import services_of
from registry import Principal, Role

REMEMBERED_S = 0.5
_REMEMBERED = 4096

bearer = HTTPBearer(auto_error=False, description="A token from `toque token create`")


class Doorman:
    """Remembers whose tokens were good a moment ago.

    verify: the access list's own check, which may read the store.
    """

    def __init__(
        self, verify: Callable[[str], Principal | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._verify = verify
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()

    def remembered(self, token: str) -> tuple[bool, Principal | None]:
        """Whether `token` was looked up a moment ago, and whose it was."""
        at, principal = self._known.get(token, (float("-inf"), None))
        return self._clock() - at <= REMEMBERED_S, principal

    def forget(self) -> None:
        """Look everybody up again."""
        self._known.clear()

    def look_up(self, token: str) -> Principal | None:
        """Ask the access list. May block. Raises: Unavailable."""
        principal = self._verify(token)
        self._known[token] = (self._clock(), principal)
        self._known.move_to_end(token)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return principal


def allowed(role: Role) -> Any:
    """A dependency that yields the Principal of a request whose role is at least `role`.

    Raises: Problem 401 without a live token, 403 for too low a role.
    """

    async def principal(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Principal:
        found = await identify(request, credentials.credentials if credentials else None)
        if not found.may(role):
            raise Problem(403, f"{found.name} has the role {found.role.name}; this needs {role.name}")
        return found

    return Depends(principal)


async def identify_bearer(request: Request) -> Principal:
    """Whose token the request carries, where no route asks. Raises: Problem 401."""
    credentials = await bearer(request)
    return await identify(request, credentials.credentials if credentials else None)


async def identify(request: Request, token: str | None) -> Principal:
    """Whose token it is. Raises: Problem 401."""
    headers = {"WWW-Authenticate": "Bearer"}
    if not token:
        raise Problem(401, "send `Authorization: Bearer <token>`; `toque token` makes one", headers=headers)
    doorman: Doorman = request.app.state.doorman
    fresh, principal = doorman.remembered(token)
    if not fresh:
        principal = await services_of(request).run(doorman.look_up, token)
    if principal is None:
        raise Problem(401, "the token is unknown, expired or revoked", headers=headers)
    return principal
