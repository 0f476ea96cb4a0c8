"""Leader election by put-if-absent alone: time is cut into terms, and a term belongs to its first claimant.

The leader claims the next term before its own has ended, so it stays leader while it lives; when it dies, another
becomes leader at most two terms later. Holders whose clocks disagree may both lead for the difference: what a leader
does must be safe to do twice, and the lease only saves the duplicate work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from registry import AlreadyExists, ObjectStore


@dataclass
class LeaderLease:
    """A holder's claim to be the leader of `name`, term by term.

    holder: identity of the claimant; term_s: length of a term; clock: wall time in seconds since the epoch;
    is_leader: last result of `renew`.
    """

    store: ObjectStore
    name: str
    holder: str
    term_s: float = 5.0
    clock: Callable[[], float] = time.time
    is_leader: bool = False
    _won: set[int] = field(default_factory=set)
    _lost: set[int] = field(default_factory=set)

    def renew(self) -> bool:
        """Claim the current term, and in its second half the next; returns whether this holder leads now."""
        now = self.clock()
        term = int(now // self.term_s)
        self.is_leader = self._claim(term)
        if self.is_leader and now - term * self.term_s >= self.term_s / 2:
            self._claim(term + 1)
        return self.is_leader

    def _claim(self, term: int) -> bool:
        if term not in self._won | self._lost:
            try:
                self.store.create(self._key(term), self.holder.encode())
                self._won = {each for each in self._won if each >= term - 1} | {term}
                self.store.delete(
                    self._key(term - 2)
                )  # ended for every holder whose clock is right to within a term
            except AlreadyExists:
                self._lost = {term}
        return term in self._won

    def _key(self, term: int) -> str:
        return f"leases/{self.name}/{term}"
