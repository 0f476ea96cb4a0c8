"""Cache of the principals of bearer tokens, so that the access list is not read for each request.

Gateway, MLflow's protocol and predictor authenticate by it. A token is verified with the store once, off the event loop,
and then cached. An entry older than `recheck_s` is verified again in the background; a request with an entry older than
twice that waits: a revoked token is refused within `2 * recheck_s`, and a steady caller never waits for the store. While
the store hangs, a token that is new in this process is looked up in the list as it was read last: a replica that has just
started must not delay callers whom other replicas know.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from registry import Principal, Unavailable

_CAPACITY = 4_096


class AccessList(Protocol):
    """The list of tokens and the principals that they stand for."""

    def verify(self, token: str, /) -> Principal | None:
        """Find the principal of a valid token; may read the store."""
        ...

    def recall(self, token: str, /) -> Principal | None:
        """Find the principal in the list as it was read last, without reading the store."""
        ...


class _Entry(NamedTuple):
    at: float
    principal: Principal | None


class TokenCache:
    """Finds principals of bearer tokens, for one event loop.

    recheck_s: age at which an entry is verified again; patience_s: how long to wait for a store that hangs before an
    old entry is used.
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
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._checking: dict[str, asyncio.Task[_Entry]] = {}

    async def principal(self, token: str) -> Principal | None:
        """Find the principal of `token`; None if the token is unknown, expired or revoked.

        Raises: Unavailable if the store does not answer and the token is not known.
        """
        known = self._entries.get(token)
        age_s = self._clock() - known.at if known is not None else float("inf")
        if age_s > self._recheck_s:
            checking = self._check(token)
            if known is None:
                known = await self._wait_first(token, checking)
            elif age_s > 2 * self._recheck_s:
                known = await self._wait_renewed(token, known, checking)
        assert known is not None  # noqa: S101  # only a known token has an age below recheck_s
        return known.principal

    def forget(self) -> None:
        """Empty the cache, so that every token is verified again."""
        self._entries.clear()

    async def settled(self) -> None:
        """Wait until no verification is in progress."""
        await asyncio.gather(*self._checking.values(), return_exceptions=True)

    async def _wait_first(self, token: str, checking: asyncio.Task[_Entry]) -> _Entry:
        """Wait for the first verification; if the store hangs, use the list as it was read last."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        if done:
            return await checking
        recalled = self._access.recall(token)
        if recalled is None:  # it may be valid all the same, if it was created after the list was read
            raise Unavailable("the access list cannot be read now; try again soon")
        return self._store_entry(token, recalled)

    async def _wait_renewed(self, token: str, entry: _Entry, checking: asyncio.Task[_Entry]) -> _Entry:
        """Wait for a new verification; if the store hangs, keep the entry, as during an outage."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        return await checking if done else self._store_entry(token, entry.principal)

    def _check(self, token: str) -> asyncio.Task[_Entry]:
        """Verify a token in the background; concurrent requests for it share one task."""
        task = self._checking.get(token)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(token))
            self._checking[token] = task
            task.add_done_callback(lambda done: self._check_done(token, done))
        return task

    def _check_done(self, token: str, done: asyncio.Task[_Entry]) -> None:
        self._checking.pop(token, None)
        if not done.cancelled():
            done.exception()  # retrieved, so that asyncio does not log it; a waiting caller gets it too

    async def _verify(self, token: str) -> _Entry:
        try:
            principal = await asyncio.get_running_loop().run_in_executor(None, self._access.verify, token)
        except Exception as error:
            known = self._entries.get(token)
            if known is None:
                raise Unavailable(f"the access list cannot be read: {error}") from error
            principal = known.principal  # during an outage the entry stays valid
        return self._store_entry(token, principal)

    def _store_entry(self, token: str, principal: Principal | None) -> _Entry:
        self._entries[token] = entry = _Entry(self._clock(), principal)
        self._entries.move_to_end(token)
        if len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)
        return entry


def bearer_token(authorization: bytes | None) -> str | None:
    """Parse the token of an `Authorization: Bearer …` header; None if the header has no such token."""
    if not authorization:
        return None
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
