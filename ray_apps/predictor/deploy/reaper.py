"""Ends deployments of versions that no endpoint replica holds any more.

One actor of the cluster, started by the first endpoint replica that needs it. It keeps nothing that endpoint replicas
do not report again within seconds, so it may die at any time: a new one gives every deployment its full linger first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable

__all__ = ["DeploymentHolds", "Reaper"]

CLAIM_S = 15.0
"""How long the replica that claimed a deployment is the only one to deploy it."""
LINGER_S = 60.0
"""For deployments that this reaper never heard of."""
_log = logging.getLogger("ray.serve")


class DeploymentHolds:
    """Holds on deployments with their expiry, claims to deploy, and the release that each deployment is of.

    clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._releases: dict[str, int] = {}

    def hold(self, names: Iterable[str], linger_s: float) -> None:
        """Keep deployments for `linger_s` from now on."""
        self._until.update(dict.fromkeys(names, self._clock() + linger_s))

    def claim(self, name: str, replica: str) -> bool:
        """Whether `replica` may deploy `name` now: no other claimed it within the last seconds."""
        now = self._clock()
        holder, until = self._claims.get(name, (replica, 0.0))
        if holder != replica and now < until:
            return False
        self._claims[name] = (replica, now + CLAIM_S)
        return True

    def deployed(self, name: str, release: int) -> None:
        """Note that a claimed deployment was deployed, which ends the claim."""
        self._claims.pop(name, None)
        self.note_release([name], release)

    def note_release(self, names: Iterable[str], release: int) -> None:
        """Note that these deployments are of this release or a later one."""
        for name in names:
            self._releases[name] = max(release, self.release(name))

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if unknown."""
        return self._releases.get(name, 0)

    def expired(self, names: Collection[str]) -> list[str]:
        """The running deployments whose hold has expired; unknown ones are held for a while first."""
        now = self._clock()
        for name in names:
            self._until.setdefault(name, now + LINGER_S)
        gone = [name for name in names if self._until[name] < now]
        self._until = {name: until for name, until in self._until.items() if until >= now}
        self._claims = {name: claim for name, claim in self._claims.items() if claim[1] >= now}
        self._releases = {name: at for name, at in self._releases.items() if name in self._until}
        return gone


class Reaper:
    """Ends deployments whose hold has expired; safe to call from several threads.

    Its methods are called by replicas of the previous release too while an upgrade goes on, so they keep their names.
    running: the names of all versions' deployments. end: ends one, and waits for it.
    """

    def __init__(
        self, running: Callable[[], Collection[str]], end: Callable[[str], None], holds: DeploymentHolds
    ) -> None:
        self._running, self._end, self._holds = running, end, holds
        self._guard = threading.Lock()  # held while a deployment ends, so that a claim on it comes after
        self._last_seen: Collection[str] = ()

    def hold(self, names: Collection[str], linger_s: float) -> list[str]:
        """Keep deployments for `linger_s`; returns those that did not run at the last sweep."""
        with self._guard:
            self._holds.hold(names, linger_s)
            return [name for name in names if name not in self._last_seen]

    def claim(self, name: str, replica: str) -> bool:
        """Whether `replica` may deploy `name` now."""
        with self._guard:
            return self._holds.claim(name, replica)

    def deployed(self, name: str, release: int) -> None:
        """Note that a claimed deployment was deployed, which ends the claim."""
        with self._guard:
            self._holds.deployed(name, release)

    def know(self, names: Collection[str], release: int) -> None:
        """Note that these deployments are of this release or a later one."""
        with self._guard:
            self._holds.note_release(names, release)

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if unknown."""
        with self._guard:
            return self._holds.release(name)

    def sweep(self) -> None:
        """End every running deployment whose hold has expired."""
        with self._guard:
            self._last_seen = self._running()
            for name in self._holds.expired(self._last_seen):
                _log.warning("no endpoint holds %s any more; it ends", name)
                self._end(name)
