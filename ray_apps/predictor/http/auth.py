"""Who may ask: bearer tokens checked against the registry's access list, from memory on the fast path.

A token is verified with the store once, off the event loop, and then remembered. A remembered answer older than
`recheck_s` is looked up again in the background, one older than twice that is waited for: a revoked token is
refused within `2 * recheck_s`, and no steady caller ever waits for the store. While the store hangs a token that is new here
is looked for in the list as it was read last: a replica that has just started must not hold up whom the others know.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ray_apps.predictor.protocol.errors import Denied, NotReady

__all__ = ["Doorkeeper", "Gate", "OpenDoor", "Principal", "Verifier"]

_REMEMBERED = 4_096


class Principal(Protocol):
    """Whom a token stands for."""

    @property
    def name(self) -> str:
        """Who it is."""
        ...

    def may(self, role: str, /) -> bool:
        """Whether its role is at least `role`."""
        ...


class Verifier(Protocol):
    """The access list."""

    def verify(self, token: str, /) -> Principal | None:
        """The principal of a valid token, or None."""
        ...

    def recall(self, token: str, /) -> Principal | None:
        """The same by what was read last, at once."""
        ...


class Gate(Protocol):
    """Lets a request in, or not."""

    async def admit(self, authorization: bytes | None) -> None:
        """Check an Authorization header. Raises: Denied, NotReady."""
        ...


class OpenDoor:
    """Lets everybody in: for platforms whose operator switched authentication off."""

    async def admit(self, authorization: bytes | None) -> None:
        """Let the request in."""


class _Known(NamedTuple):
    at: float
    status: int  # 200, 401 or 403


class Doorkeeper:
    """Admits requests whose token has the role `predictor` or a higher one.

    recheck_s: when a remembered answer is looked up again. patience_s: how long a store that hangs is waited for
    before a remembered answer goes on.
    """

    def __init__(
        self,
        access: Verifier,
        *,
        recheck_s: float = 0.5,
        patience_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access, self._recheck_s, self._patience_s, self._clock = access, recheck_s, patience_s, clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._checking: dict[bytes, asyncio.Task[_Known]] = {}

    async def admit(self, authorization: bytes | None) -> None:
        """Check an Authorization header.

        Raises: Denied (401 without a valid token, 403 for too low a role); NotReady if the store does not
        answer and the token is not known.
        """
        if not authorization:
            raise Denied("authorization: missing; send 'Authorization: Bearer <token>'")
        known = self._known.get(authorization)
        age_s = self._clock() - known.at if known is not None else float("inf")
        if age_s > self._recheck_s:
            checking = self._check(authorization)
            if known is None:
                known = await self._first(authorization, checking)
            elif age_s > 2 * self._recheck_s:
                known = await self._renewed(authorization, known, checking)
        if known is None or known.status == 401:  # noqa: PLR2004 - HTTP
            raise Denied("authorization: the token is unknown, expired or revoked; ask an admin for one")
        if known.status != 200:  # noqa: PLR2004 - HTTP
            raise Denied("authorization: the token's role may not predict; it takes 'predictor'", status=403)

    async def _first(self, raw: bytes, checking: asyncio.Task[_Known]) -> _Known:
        """The outcome of a first check, or what the list said when it was read last if the store hangs."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        if done:
            return await checking
        recalled = _status(raw, self._access.recall)
        if recalled == 401:  # noqa: PLR2004 - HTTP; or it was made since
            raise NotReady("authorization: the access list cannot be read now; try again soon")
        self._known[raw] = known = _Known(self._clock(), recalled)
        return known

    async def _renewed(self, raw: bytes, known: _Known, checking: asyncio.Task[_Known]) -> _Known:
        """The outcome of a check, or what was known if the store hangs: that is the same as a store that is away."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        if done:
            return await checking
        self._known[raw] = kept = _Known(self._clock(), known.status)
        return kept

    def _check(self, raw: bytes) -> asyncio.Task[_Known]:
        """Verify a header in the background, once at a time."""
        task = self._checking.get(raw)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(raw))
            self._checking[raw] = task
            task.add_done_callback(lambda done: self._checked(raw, done))
        return task

    def _checked(self, raw: bytes, done: asyncio.Task[_Known]) -> None:
        self._checking.pop(raw, None)
        if not done.cancelled():
            done.exception()  # whoever waited has it; nobody did if it was a background check

    async def _verify(self, raw: bytes) -> _Known:
        loop = asyncio.get_running_loop()
        try:
            status = await loop.run_in_executor(None, _status, raw, self._access.verify)
        except Exception as error:
            known = self._known.get(raw)
            if known is None:
                raise NotReady(f"authorization: the access list cannot be read: {error}") from error
            status = known.status  # the store is away: what was true goes on
        answer = _Known(self._clock(), status)
        self._known[raw] = answer
        self._known.move_to_end(raw)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return answer


def _status(raw: bytes, verify: Callable[[str], Principal | None]) -> int:
    scheme, _, token = raw.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return 401
    principal = verify(token.strip())
    if principal is None:
        return 401
    return 200 if principal.may("predictor") else 403
