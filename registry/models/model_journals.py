"""Access to the models' journals, which all parts of the registry share: store, actor, clock and folded states."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from toque.registry.errors import InvalidInput, RegistryError
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.journal.fold import PATIENCE_S
from toque.registry.models import state as model_state
from toque.registry.models.state import ModelState
from toque.registry.names import check_name
from toque.registry.times import Clock, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from toque.registry.models.decisions import Body
    from toque.registry.store import ObjectStore

S = TypeVar("S")
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
        self._origin: ModelJournals | None = None
        self._folds: dict[str, Fold[Any]] = {}
        self._folds_lock = threading.Lock()

    def follow(self, model: str) -> Fold[ModelState]:
        """Follow the model's state: `.refresh()` is one read and gives `.versions`, `.aliases` and `.traffic`.

        Raises: InvalidInput for a malformed name.
        """
        check_name(model, what="model")
        return self._follow(
            f"models/{model}/journal",
            lambda journal: Fold(
                journal,
                ModelState(name=model),
                model_state.step,
                encode=model_state.encode,
                decode=partial(model_state.decode, model),
                schema=model_state.SCHEMA,
                carry=True,
                guarded=True,
            ),
        )

    def _follow(self, path: str, fold_of: Callable[[Journal], Fold[S]]) -> Fold[S]:
        """Follow the journal at a path, by a fold that is made once; one of another actor goes on from that of all actors."""
        if (found := self._folds.get(path)) is not None:
            return found
        if self._origin is None:
            made = fold_of(Journal(self.store, path, actor=self.actor, clock=self.clock))
        else:
            shared = self._origin._follow(path, fold_of)  # noqa: SLF001  # of this class
            with suppress(RegistryError):  # the new one meets the same when it is read
                shared.refresh()
            made = shared.as_actor(self.actor)
        with self._folds_lock:
            return self._folds.setdefault(path, made)

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
