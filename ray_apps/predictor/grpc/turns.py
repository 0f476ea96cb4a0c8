"""Places for calls, so that a part of a server's memory is bounded, for all callers and for each."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

from toque.ray_apps.predictor.protocol.errors import Overloaded

__all__ = ["Turn", "Turns"]


class Turns:
    """Places of which each caller may have a part. Belongs to one event loop.

    total, of_caller: places for all calls, and for those of one caller.
    """

    def __init__(self, total: int, of_caller: int) -> None:
        self.total, self.of_caller = total, of_caller
        self.taken: Counter[bytes | None] = Counter()
        self.count = 0
        self.waiting: set[asyncio.Future[None]] = set()

    def take(self, caller: bytes | None, what: str) -> Turn:
        """Take a place, to be left at the end of a `with` block. what: for the message.

        Raises: Overloaded if there is none.
        """
        if not self.has_room(caller):
            raise Overloaded(
                f"{what}: {self.taken[caller]} are open by this token and {self.count} in all, of at most "
                f"{self.of_caller} and {self.total}; end one first"
            )
        return Turn(self, caller)

    async def wait(self, caller: bytes | None) -> Turn:
        """Wait for a place and take it, to be left at the end of a `with` block."""
        while not self.has_room(caller):
            freed = asyncio.get_running_loop().create_future()
            self.waiting.add(freed)
            try:
                await freed
            finally:
                self.waiting.discard(freed)
        return Turn(self, caller)

    def has_room(self, caller: bytes | None) -> bool:
        """Whether there is a place for one more call of this caller."""
        return self.count < self.total and self.taken[caller] < self.of_caller


class Turn:
    """A place that a call has, until the `with` block around its use ends."""

    __slots__ = ("_caller", "_turns")

    def __init__(self, turns: Turns, caller: bytes | None) -> None:
        self._turns, self._caller = turns, caller
        turns.count += 1
        turns.taken[caller] += 1

    def __enter__(self) -> Self:
        """Use the place until the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the place to others."""
        turns, caller = self._turns, self._caller
        turns.count -= 1
        turns.taken[caller] -= 1
        if not turns.taken[caller]:
            del turns.taken[caller]
        for freed in turns.waiting:
            if not freed.done():
                freed.set_result(None)
