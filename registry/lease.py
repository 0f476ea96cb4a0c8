"""Lease in a store, by which one holder at a time leads or does what must not be done twice at once.

It compares no clocks of machines: the store tells how old the lease is by its own clock, and a holder counts its own seconds from
before its last renewal. So one that was cut off or stalled stops before another begins, unless clocks run at different speeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from registry.errors import AlreadyExists
from registry.store import ObjectStore

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
            self._number = self._newest()
            found = None if self._number is None else self.store.find_aged(self._key(self._number))
        if found is None or found.data in (b"", self.holder.encode()):
            return True
        return bool(found.age_s > self.term_s + _SLACK_S)

    def _take(self) -> bool:
        number = 0 if self._number is None else self._number + 1
        self._number = number
        try:
            self.store.create(self._key(number), self.holder.encode())
        except AlreadyExists:
            return False
        # One that stalled before its `create` may have made a number again that is deleted.
        newest = self._newest()
        if newest != number:
            self._number = newest
            return False
        if number > 1:
            self.store.delete(self._key(number - 2))
        return True

    def _newest(self) -> int | None:
        keys = list(self.store.list(self._folder))
        return int(keys[-1].removeprefix(self._folder)) if keys else None

    @property
    def _folder(self) -> str:
        return f"leaders/{self.name}/"

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:08d}"
