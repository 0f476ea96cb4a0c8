"""Lease in a store, by which one holder at a time leads or does what must not be done twice at once.

It compares no clocks of machines: the store tells how old the lease is by its own clock, and a holder counts its own seconds from
before its last renewal. So one that was cut off or stalled stops before another begins, unless clocks run at different speeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from toque.registry.errors import AlreadyExists
from toque.registry.store import ObjectStore

STORE_TERM_S = 5.0
STORE_BEAT_S = 1.5
_SLACK_S = 1.0  # S3 tells times in whole seconds


def passing_s() -> float:
    """Seconds that pass, also while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass
class StoreLease:
    """Lease by numbered objects of a store: the newest number leads while its object is rewritten.

    Who finds it older than a term, by the store's clock, creates the next number, which one contender can.
    holder: unique, as whoever has that name takes over what was claimed in it; so a claim whose answer was lost is no other's.
    """

    store: ObjectStore
    name: str
    holder: str
    term_s: float = STORE_TERM_S
    clock: Callable[[], float] = passing_s
    _number: int | None = None  # the newest that is known
    _until: float = float("-inf")

    def renew(self) -> float:
        """Claim or renew the lease; returns until when this holder leads, a past moment if it does not.

        One write while it leads, one read while another does. Raises: Unavailable where it is not known.
        """
        begun = self.clock()
        if self._number is not None and begun < self._until:
            self.store.put(self._key(self._number), self.holder.encode())
            self._until = begun + self.term_s
        elif self.is_free() and self._take():
            self._until = begun + self.term_s
        return self._until

    def release(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        if self._number is not None and self.clock() < self._until:
            self._until = float("-inf")
            self.store.put(self._key(self._number), b"")

    def is_free(self) -> bool:
        """Whether the newest number is given back, older than a term, or this holder's own, whose term ended while it stalled."""
        found = None if self._number is None else self.store.find_aged(self._key(self._number))
        if found is None:
            self._number = max(self._numbers(), default=None)
            found = None if self._number is None else self.store.find_aged(self._key(self._number))
        if found is None or found.data in (b"", self.holder.encode()):
            return True
        return bool(found.age_s > self.term_s + _SLACK_S)

    def _take(self, *, again: bool = True) -> bool:
        number = 0 if self._number is None else self._number + 1
        self._number = number
        try:
            self.store.create(self._key(number), self.holder.encode())
        except AlreadyExists:
            # This holder's own, if an answer was lost or a request was late. Others count its age from a moment that is
            # unknown here, so the next number is claimed instead of this one.
            own = again and self.store.find(self._key(number)) == self.holder.encode()
            return own and self._take(again=False)
        # One that stalled before its `create` may have made a number again that is deleted.
        numbers = self._numbers()
        newest = max(numbers, default=None)
        if newest != number:
            self._number = newest
            return False
        for old in numbers[:-2]:
            self.store.delete(self._key(old))
        return True

    def _numbers(self) -> list[int]:
        return [int(key.removeprefix(self._folder)) for key in self.store.list(self._folder)]

    @property
    def _folder(self) -> str:
        return f"leaders/{self.name}/"

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:08d}"
