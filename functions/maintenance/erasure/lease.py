"""Lease by which one erasure at a time rewrites a store's tables: two at once would undo each other's rewriting."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from toque.functions.maintenance.errors import MaintenanceError
from toque.functions.runtime.durable.heartbeat import repeated
from toque.registry import ObjectStore, RegistryError
from toque.registry.lease import StoreLease, passing_s

BEAT_S = 10.0
TERM_S = 60.0
_unanswered: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
"""By process, as one may be forked, and store: names of holders that may have the lease without knowing it, for the next claim."""


class Holder:
    """One erasure's claim to the lease, which ends for good at the first term that no renewal reached."""

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = passing_s) -> None:
        """Claim the lease of a store's erasures. clock: seconds that pass, of this holder alone. Raises: MaintenanceError while another has it."""
        try:
            name = _unanswered[os.getpid(), store.url].pop()  # no other thread gets it, too
        except IndexError:
            name = uuid.uuid4().hex
        self._lease = StoreLease(store, "erasure", name, term_s=TERM_S, clock=clock)
        self._clock = clock
        try:
            self._until = self._lease.renew()
        except RegistryError:
            self._leave_name()
            raise
        if not self._has_it():
            raise MaintenanceError(
                "another erasure is under way, or was killed less than a minute ago; yours is recorded: "
                "call finish_erasures then, or leave it to the nightly run"
            )

    def renew(self) -> None:
        """Renew the lease, unless it was lost: what was read before may be out of date. Raises: RegistryError."""
        if self._has_it():
            self._until = self._lease.renew()

    def check(self) -> None:
        """Raise MaintenanceError once the lease was lost; asked before each rewriting."""
        if not self._has_it():
            raise MaintenanceError(
                f"the lease of erasures could not be renewed for {TERM_S:g} s, and another erasure may have begun; yours is "
                "recorded: call finish_erasures, or leave it to the nightly run"
            )

    def release(self) -> None:
        """Give the lease back, so that another erasure need not wait for its end. Raises: RegistryError."""
        try:
            self._lease.release()
        except RegistryError:
            self._leave_name()
            raise
        finally:
            self._until = float("-inf")

    def _leave_name(self) -> None:
        """Leave the name to the next claim of this process, which then need not wait for the end of a term that nobody uses."""
        _unanswered[os.getpid(), self._lease.store.url].append(self._lease.holder)

    def _has_it(self) -> bool:
        return self._clock() < self._until


@contextmanager
def only_erasure(store: ObjectStore) -> Iterator[Callable[[], None]]:
    """Hold the lease of a store's erasures within the block; that of a killed process is taken over after a minute.

    Returns: `Holder.check`. Raises: MaintenanceError if another erasure is under way.
    """
    holder = Holder(store)
    try:
        with repeated(holder.renew, every_s=BEAT_S, name="erasure-lease", tolerated=RegistryError):
            yield holder.check
    finally:
        with suppress(RegistryError):  # it ends by itself
            holder.release()
