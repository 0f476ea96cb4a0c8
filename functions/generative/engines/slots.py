"""Slots of an engine, and the requests that wait for one: by service tier, and within a tier in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from typing import Final

from toque.registry import SERVICE_TIERS, ServiceTier

__all__ = ["AHEAD_S", "QueueFull", "Slot", "SlotQueue"]

AHEAD_S: Final = 60.0
"""How much earlier a request of a tier counts as come than one of the tier below: the longest that it may overtake by."""
_LONGEST_RETRY_S: Final = 60.0
_WEIGHT: Final = 0.2
"""Of the last slot that was given back, in the average of how long they are held."""


class QueueFull(Exception):  # noqa: N818  # an answer to the caller, who may try again
    """As many requests wait for the engine as may. retry_after_s: when about so many have had their slot."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Slot:
    """One request's slot of an engine, until it is released."""

    __slots__ = ("_begin_s", "_queue")

    def __init__(self, queue: SlotQueue, begin_s: float) -> None:
        self._queue: SlotQueue | None = queue
        self._begin_s = begin_s

    def release(self) -> None:
        """Give the slot to the next request; later calls do nothing."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.given_back(self._begin_s)


class _Waiter:
    __slots__ = ("given", "tier", "turn")

    def __init__(self, turn: tuple[float, int], tier: ServiceTier, given: asyncio.Future[None]) -> None:
        self.turn, self.tier, self.given = turn, tier, given


class SlotQueue:
    """Gives out the slots of one engine; of one event loop.

    A request of a higher tier overtakes those of the tier below that came up to `AHEAD_S` before it, and no others, so that none waits
    for ever. slots: requests that the engine computes at once. most_waiting: beyond it the newest of the lowest tier is refused. clock:
    monotonic seconds.
    """

    def __init__(self, slots: int, *, most_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._free, self._most, self._clock = slots, slots, most_waiting, clock
        self._waiting: list[_Waiter] = []
        """In the order of their turns."""
        self._number, self._held_s = 0, 0.0

    def waiting(self, tier: ServiceTier) -> int:
        """Count the requests of a tier that wait."""
        return sum(each.tier == tier for each in list(self._waiting))

    async def take(self, tier: ServiceTier) -> Slot:
        """Wait until the request has a slot. Raises: QueueFull, at once or when one of a higher tier comes."""
        if self._free:  # then nobody waits
            self._free -= 1
            return Slot(self, self._clock())
        waiter = self._enqueue(tier)
        try:
            await waiter.given
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.given.cancelled() and waiter.given.exception() is None:
                self._pass_on()  # it was given one just as its caller left
            raise
        return Slot(self, self._clock())

    def given_back(self, begin_s: float) -> None:
        """Take a slot back that was held since then, and give it to the next request."""
        held_s = self._clock() - begin_s
        self._held_s += _WEIGHT * (held_s - self._held_s) if self._held_s else held_s
        self._pass_on()

    def _enqueue(self, tier: ServiceTier) -> _Waiter:
        rank = SERVICE_TIERS.index(tier)
        if len(self._waiting) >= self._most:
            self._make_room(tier)
        self._number += 1
        turn = self._clock() - AHEAD_S * rank, self._number
        waiter = _Waiter(turn, tier, asyncio.get_running_loop().create_future())
        insort(self._waiting, waiter, key=lambda each: each.turn)
        return waiter

    def _make_room(self, tier: ServiceTier) -> None:
        """Refuse the newest of the lowest tier that is below this one. Raises: QueueFull if there is none."""
        rank = SERVICE_TIERS.index(tier)
        lowest = min(rank, *(SERVICE_TIERS.index(each.tier) for each in self._waiting))
        refusal = QueueFull(
            f"{len(self._waiting)} requests wait for this model's engine, as many as may, and this one is the newest of the lowest "
            f"service_tier ({SERVICE_TIERS[lowest]}); send it later",
            retry_after_s=min(_LONGEST_RETRY_S, max(1.0, self._held_s * len(self._waiting) / self._slots)),
        )
        if lowest == rank:
            raise refusal
        below = (each for each in self._waiting if each.tier == SERVICE_TIERS[lowest])
        refused = max(below, key=lambda each: each.turn)
        self._waiting.remove(refused)
        if not refused.given.done():  # else its caller has left
            refused.given.set_exception(refusal)

    def _pass_on(self) -> None:
        while self._waiting:
            given = self._waiting.pop(0).given
            if not given.done():  # else its caller has left
                given.set_result(None)
                return
        self._free += 1
