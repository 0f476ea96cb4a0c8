"""Access to the models' journals, which all parts of the registry share: store, actor, clock and folded states."""

from __future__ import annotations

import threading
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from registry.errors import InvalidInput
from registry.journal import Entry, Fold, Journal
from registry.journal.fold import PATIENCE_S
from registry.models import state as model_state
from registry.models.state import ModelState
from registry.names import check_name
from registry.times import Clock, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.models.decisions import Body
    from registry.store import ObjectStore

_NAMES = "model-names/"


class ModelJournals:
    """Access to the journals of models, each folded to its state.

    store: holds the journals; actor: recorded with every change; clock: gives the times of changes.
    """

    def __init__(self, store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> None:
        if not actor or not actor.strip():
            raise InvalidInput(f"actor={actor!r}: every change records who made it; pass a non-empty name")
        self.store = store
        self.actor = actor
        self.clock = clock
        self._models: dict[str, Fold[ModelState]] = {}
        self._models_lock = threading.Lock()

    def follow(self, model: str) -> Fold[ModelState]:
        """Follow the model's state: `.refresh()` is one read and gives `.versions`, `.aliases` and `.traffic`.

        Raises: InvalidInput for a malformed name.
        """
        check_name(model, what="model")
        with self._models_lock:
            if model not in self._models:
                self._models[model] = Fold(
                    Journal(self.store, f"models/{model}/journal", actor=self.actor, clock=self.clock),
                    ModelState(name=model),
                    model_state.step,
                    encode=model_state.encode,
                    decode=partial(model_state.decode, model),
                    schema=model_state.SCHEMA,
                    carry=True,
                )
            return self._models[model]

    def list_models(self, *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of the models that come after `after`, sorted; at most `limit` of them, which reads no more models."""
        keys = self.store.list(_NAMES, after=f"{_NAMES}{after}" if after else "")
        names = (key.removeprefix(_NAMES) for key in keys)
        found = (name for name in names if self.follow(name).refresh().created_at is not None)
        return list(islice(found, limit))

    def _change(
        self, model: str, decide: Callable[[ModelState], Body | None], *, patience_s: float = PATIENCE_S
    ) -> tuple[Entry | None, ModelState]:
        """Append the entry that `decide` returns; gives the entry and the state that contains it."""
        fold = self.follow(model)
        entry = fold.transact(decide, patience_s=patience_s)
        return entry, fold.state
