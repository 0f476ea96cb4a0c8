"""Ends deployments of versions that no door holds any more.

One actor of the cluster, started by the first door that needs it. It remembers nothing that doors do not say again
within seconds, so it may die at any time: one that starts anew gives every deployment its whole time first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable

__all__ = ["Holds", "Keeper"]

CLAIM_S = 15.0
"""Who deploys a version is let alone for so long."""
LINGER_S = 60.0
"""For deployments that this keeper never heard of."""
_log = logging.getLogger("ray.serve")


class Holds:
    """Which deployments are held, until when, and what is deployed. clock: seconds that never run backwards."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._releases: dict[str, int] = {}

    def hold(self, names: Iterable[str], linger_s: float) -> None:
        """Keep deployments for `linger_s` from now on."""
        self._until.update(dict.fromkeys(names, self._clock() + linger_s))

    def claim(self, name: str, door: str) -> bool:
        """Whether `door` may deploy `name` now: nobody else said so within the last seconds."""
        now = self._clock()
        holder, until = self._claims.get(name, (door, 0.0))
        if holder != door and now < until:
            return False
        self._claims[name] = (door, now + CLAIM_S)
        return True

    def deployed(self, name: str, release: int) -> None:
        """Who claimed a deployment has deployed it."""
        self._claims.pop(name, None)
        self.know([name], release)

    def know(self, names: Iterable[str], release: int) -> None:
        """These deployments are of a door's release, or of a later one."""
        for name in names:
            self._releases[name] = max(release, self.release(name))

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if nobody said."""
        return self._releases.get(name, 0)

    def lapsed(self, names: Collection[str]) -> list[str]:
        """Of the deployments that there are, those that nobody holds; what is new to us is held for a while."""
        now = self._clock()
        for name in names:
            self._until.setdefault(name, now + LINGER_S)
        gone = [name for name in names if self._until[name] < now]
        self._until = {name: until for name, until in self._until.items() if until >= now}
        self._claims = {name: claim for name, claim in self._claims.items() if claim[1] >= now}
        self._releases = {name: at for name, at in self._releases.items() if name in self._until}
        return gone


class Keeper:
    """Ends what nobody holds. there: the names of all versions' deployments. end: ends one, and waits for it."""

    def __init__(
        self, there: Callable[[], Collection[str]], end: Callable[[str], None], holds: Holds
    ) -> None:
        self._there, self._end, self._holds = there, end, holds
        self._guard = threading.Lock()  # held while one ends: whoever wants it back comes after
        self._seen: Collection[str] = ()

    def hold(self, names: Collection[str], linger_s: float) -> list[str]:
        """Keep deployments for `linger_s`; returns those that there were not at the last look."""
        with self._guard:
            self._holds.hold(names, linger_s)
            return [name for name in names if name not in self._seen]

    def claim(self, name: str, door: str) -> bool:
        """Whether `door` may deploy `name` now."""
        with self._guard:
            return self._holds.claim(name, door)

    def deployed(self, name: str, release: int) -> None:
        """Who claimed a deployment has deployed it."""
        with self._guard:
            self._holds.deployed(name, release)

    def know(self, names: Collection[str], release: int) -> None:
        """These deployments are of a door's release, or of a later one."""
        with self._guard:
            self._holds.know(names, release)

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if nobody said."""
        with self._guard:
            return self._holds.release(name)

    def sweep(self) -> None:
        """Look what there is, and end what nobody holds."""
        with self._guard:
            self._seen = self._there()
            for name in self._holds.lapsed(self._seen):
                _log.warning("no door holds %s any more; it ends", name)
                self._end(name)
