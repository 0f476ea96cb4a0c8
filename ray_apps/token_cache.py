"""Cache of the principals of bearer tokens, so that the access list is not read for each request.

All doors authenticate by it. A token is verified once, off the event loop, and then cached. An entry older than
`recheck_s` is verified again in the background; a request with an entry older than twice that waits: a revoked token is
refused within `2 * recheck_s`, and a steady caller never waits for the store. While the store hangs, a token that is new
in this process is looked up in the list as it was read last: a replica that has just started must not delay callers whom
other replicas know.

Texts without the form of a token are refused at once. Wrong tokens are remembered apart from valid ones, which they
cannot push out, and only a few tokens that are not known are verified at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from toque.registry import Principal, Unavailable

_KNOWN_KEPT = 4_096
_WRONG_KEPT = 512
_NEW_AT_ONCE = 4
_NEW_WAITING = 256
_Checks = dict[str, "asyncio.Task[Principal | None]"]


class AccessList(Protocol):
    """The list of tokens and the principals that they stand for."""

    def recognises(self, token: str, /) -> bool:
        """Whether a text has the form of a token, without reading anything."""
        ...

    def verify(self, token: str, /) -> Principal | None:
        """Find the principal of a valid token; may read the store."""
        ...

    def recall(self, token: str, /) -> Principal | None:
        """Find the principal in the list as it was read last, without reading the store."""
        ...


class _Entry(NamedTuple):
    at: float
    principal: Principal


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
        self._known: LRUCache[str, _Entry] = LRUCache(_KNOWN_KEPT)
        self._wrong: LRUCache[str, float] = LRUCache(_WRONG_KEPT)
        self._rechecks: _Checks = {}
        self._first_checks: _Checks = {}
        self._new = asyncio.Semaphore(_NEW_AT_ONCE)

    async def principal(self, token: str) -> Principal | None:
        """Find the principal of `token`; None if the token is unknown, expired or revoked.

        Raises: Unavailable if the store does not answer and the token is not known.
        """
        known = self._known.get(token)
        if known is None:
            return await self._first(token)
        age_s = self._clock() - known.at
        if age_s > self._recheck_s:
            checking = self._check(token, self._rechecks)
            if age_s > 2 * self._recheck_s:
                return await self._renewed(token, known, checking)
        return known.principal

    def fresh(self, token: str) -> Principal | None:
        """Principal of a token that was verified less than `recheck_s` ago; None of any other, which `principal` finds."""
        known = self._known.get(token)
        if known is None or self._clock() - known.at > self._recheck_s:
            return None
        return known.principal

    def forget(self) -> None:
        """Empty the cache, so that every token is verified again."""
        self._known.clear()
        self._wrong.clear()

    async def settled(self) -> None:
        """Wait until no verification is in progress."""
        await asyncio.gather(*self._rechecks.values(), *self._first_checks.values(), return_exceptions=True)

    async def _first(self, token: str) -> Principal | None:
        """Verify a token that is not known; if the store hangs, or too many wait, use the list as it was read last."""
        refused_at = self._wrong.get(token)
        if refused_at is not None and self._clock() - refused_at <= self._recheck_s:
            return None
        if not self._access.recognises(token):
            return None
        if token in self._first_checks or len(self._first_checks) < _NEW_WAITING:
            checking = self._check(token, self._first_checks)
            done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
            if done:
                return await checking
        recalled = self._access.recall(token)
        if recalled is None:  # it may be valid all the same, if it was created after the list was read
            raise Unavailable("the access list cannot be read now; try again soon")
        return self._note(token, recalled)

    async def _renewed(
        self, token: str, known: _Entry, checking: asyncio.Task[Principal | None]
    ) -> Principal | None:
        """Wait for a new verification; if the store hangs, keep the entry, as during an outage."""
        done, _ = await asyncio.wait({checking}, timeout=self._patience_s)
        return await checking if done else self._note(token, known.principal)

    def _check(self, token: str, checks: _Checks) -> asyncio.Task[Principal | None]:
        """Verify a token in the background; concurrent requests for it share one task."""
        task = checks.get(token)
        if task is None:
            task = checks[token] = asyncio.get_running_loop().create_task(self._verify(token))
            task.add_done_callback(lambda done: _check_done(token, done, checks))
        return task

    async def _verify(self, token: str) -> Principal | None:
        try:
            if token in self._known:
                found = await self._verify_in_thread(token)
            else:
                async with self._new:  # wrong tokens must not take the threads from the known ones
                    found = await self._verify_in_thread(token)
        except Exception as error:
            known = self._known.get(token)
            if known is None:
                raise Unavailable(f"the access list cannot be read: {error}") from error
            found = known.principal  # during an outage the entry stays valid
        return self._note(token, found)

    async def _verify_in_thread(self, token: str) -> Principal | None:
        return await asyncio.get_running_loop().run_in_executor(None, self._access.verify, token)

    def _note(self, token: str, principal: Principal | None) -> Principal | None:
        """Remember what a token stands for, or that it is wrong."""
        now = self._clock()
        if principal is None:
            self._known.pop(token, None)
            self._wrong[token] = now
        else:
            self._wrong.pop(token, None)
            self._known[token] = _Entry(now, principal)
        return principal


def _check_done(token: str, done: asyncio.Task[Principal | None], checks: _Checks) -> None:
    checks.pop(token, None)
    if not done.cancelled():
        done.exception()  # retrieved, so that asyncio does not log it; a waiting caller gets it too


def bearer_token(authorization: bytes | None) -> str | None:
    """Parse the token of an `Authorization: Bearer …` header; None if the header has no such token."""
    if not authorization:
        return None
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
