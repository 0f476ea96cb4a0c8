"""Lease by which one erasure at a time rewrites a store's tables: two at once would undo each other's rewriting."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from functions.maintenance.errors import MaintenanceError
from functions.runtime.durable.heartbeat import repeated
from registry import ObjectStore, RegistryError
from registry.lease import StoreLease, passing_s

BEAT_S = 10.0
TERM_S = 60.0


class Holder:
    """One erasure's claim to the lease, which ends for good at the first term that no renewal reached."""

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = passing_s) -> None:
        """Claim the lease of a store's erasures. clock: seconds that pass, of this holder alone. Raises: MaintenanceError while another has it."""
        self._lease = StoreLease(store, "erasure", uuid.uuid4().hex, term_s=TERM_S, clock=clock)
        self._clock = clock
        self._until = self._lease.renew()
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
        self._lease.release()

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
