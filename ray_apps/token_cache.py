"""Principals of bearer tokens, remembered so that the access list is not read for each request.

Every door of the platform asks here: gateway, MLflow's protocol and predictor. A token is verified with the store once, off the
event loop, and then remembered. An answer older than `recheck_s` is looked up again in the background, and one older than twice
that is waited for: a revoked token is refused within `2 * recheck_s`, and no steady caller ever waits for the store. While the
store hangs, a token that is new in this process is looked up in the list as it was read last: a replica that has just started
must not hold up callers whom the others know.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from registry import Principal, Unavailable

_REMEMBERED = 4_096


class AccessList(Protocol):
    """The list of tokens and the principals that they stand for."""

    def verify(self, token: str, /) -> Principal | None:
        """The principal of a valid token, or None; may read the store."""
        ...

    def recall(self, token: str, /) -> Principal | None:
        """The principal by the list as it was read last, at once."""
        ...


class _Known(NamedTuple):
    at: float
    principal: Principal | None


class TokenCache:
    """Looks up bearer tokens for one event loop.

    recheck_s: when a remembered answer is looked up again. patience_s: how long a store that hangs is waited for before a
    remembered answer goes on.
    """

    def __init__(
        self,
        access: AccessList,
        *,
        recheck_s: float = 0.5,
        patience_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access, self._recheck_s, self._patience_s, self._clock = access, recheck_s, patience_s, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._checking: dict[str, asyncio.Task[_Known]] = {}

    async def principal(self, token: str) -> Principal | None:
        """The principal of `token`; None if it is unknown, expired or revoked.

        Raises: Unavailable if the store does not answer and the token is not known.
        """
        known = self._known.get(token)
        age_s = self._clock() - known.at if known is not None else float("inf")
        if age_s > self._recheck_s:
            checking = self._check(token)
            if known is None:
                known = await self._first(token, checking)
            elif age_s > 2 * self._recheck_s:
                known = await self._renewed(token, known, checking)
        assert known is not None  # noqa: S101  # an age below the recheck is of an answer
        return known.principal

    def forget(self) -> None:
        """Look every token up again when it comes next."""
        self._known.clear()

    async def settled(self) -> None:
        """Wait until no token is being looked up."""
        await asyncio.gather(*self._checking.values(), return_exceptions=True)

    async def _first(self, token: str, checking: asyncio.Task[_Known]) -> _Known:
        """The outcome of a first check, or of the list as it was read last if the store hangs."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        if done:
            return await checking
        recalled = self._access.recall(token)
        if recalled is None:  # a token that was made since the list was read is not in it either
            raise Unavailable("the access list cannot be read now; try again soon")
        return self._remember(token, recalled)

    async def _renewed(self, token: str, known: _Known, checking: asyncio.Task[_Known]) -> _Known:
        """The outcome of a check, or what was known if the store hangs: a hang is treated like an outage."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        return await checking if done else self._remember(token, known.principal)

    def _check(self, token: str) -> asyncio.Task[_Known]:
        """Verify a token in the background, once at a time."""
        task = self._checking.get(token)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(token))
            self._checking[token] = task
            task.add_done_callback(lambda done: self._checked(token, done))
        return task

    def _checked(self, token: str, done: asyncio.Task[_Known]) -> None:
        self._checking.pop(token, None)
        if not done.cancelled():
            done.exception()  # a caller that waited has it; a check in the background has no caller

    async def _verify(self, token: str) -> _Known:
        try:
            principal = await asyncio.get_running_loop().run_in_executor(None, self._access.verify, token)
        except Exception as error:
            known = self._known.get(token)
            if known is None:
                raise Unavailable(f"the access list cannot be read: {error}") from error
            principal = known.principal  # during an outage the last answer stands
        return self._remember(token, principal)

    def _remember(self, token: str, principal: Principal | None) -> _Known:
        self._known[token] = answer = _Known(self._clock(), principal)
        self._known.move_to_end(token)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return answer


def bearer_token(authorization: bytes | None) -> str | None:
    """The token of an `Authorization: Bearer …` header; None if there is none."""
    if not authorization:
        return None
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
