"""One leader at a time, by nothing but put-if-absent: time is cut into terms, and a term belongs to its first claimant.

The leader claims the next term before its own has ended, so it stays leader while it lives; when it dies, another
has the lead at most two terms later. Two clocks that disagree may both lead for the difference: what a leader
does must be safe to do twice, and here the lease only spares the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from registry import AlreadyExists, ObjectStore


@dataclass
class Lease:
    """A claim on the lead of `name`.

    holder: who claims; term_s: length of a term; clock: wall time in seconds since the epoch; leads: what `held`
    last answered.
    """

    store: ObjectStore
    name: str
    holder: str
    term_s: float = 5.0
    clock: Callable[[], float] = time.time
    leads: bool = False
    _won: set[int] = field(default_factory=set)
    _lost: set[int] = field(default_factory=set)

    def held(self) -> bool:
        """Whether this holder leads now; at most one write a term."""
        now = self.clock()
        term = int(now // self.term_s)
        self.leads = self._claim(term)
        if self.leads and now - term * self.term_s >= self.term_s / 2:
            self._claim(term + 1)
        return self.leads

    def _claim(self, term: int) -> bool:
        if term not in self._won | self._lost:
            try:
                self.store.create(self._key(term), self.holder.encode())
                self._won = {each for each in self._won if each >= term - 1} | {term}
                self.store.delete(self._key(term - 2))  # over for all whose clocks agree to within a term
            except AlreadyExists:
                self._lost = {term}
        return term in self._won

    def _key(self, term: int) -> str:
        return f"leases/{self.name}/{term}"
