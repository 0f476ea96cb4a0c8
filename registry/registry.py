"""The `Registry` class: models, governance and runs behind one name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toque.registry.models.governance import Governance
from toque.registry.models.models import Models
from toque.registry.runs.experiments import Experiments
from toque.registry.times import Clock, utc_now

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore


class Registry(Models, Governance, Experiments):
    """Models, versions, runs and experiments in `store`, changed in the name of `actor`. Picklable; safe for threads.

    store: from `open_store`; actor: recorded with every change; clock: gives the times of changes.
    """

    def __init__(self, store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> None:
        super().__init__(store, actor=actor, clock=clock)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.store, self.actor, self.clock)

    def __repr__(self) -> str:
        return f"Registry({self.store.url!r}, actor={self.actor!r})"

    def as_actor(self, actor: str) -> Registry:
        """Return this registry with another actor for its changes; what this one has read is not read again."""
        made = Registry(self.store, actor=actor, clock=self.clock)
        made._origin = self if self._origin is None else self._origin  # of this class
        return made


def _rebuild(store: ObjectStore, actor: str, clock: Clock) -> Registry:
    return Registry(store, actor=actor, clock=clock)
