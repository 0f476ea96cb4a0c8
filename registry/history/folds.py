"""The states that the registry folds from journals, by the journal's path, for an audit to fold them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toque.registry.access import Access
from toque.registry.journal import Fold, Journal
from toque.registry.registry import Registry

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore

_ACTOR = "audit"
FoldOf = Callable[["ObjectStore", str], Fold[Any] | None]


def registry_fold(store: ObjectStore, path: str) -> Fold[Any] | None:
    """Open the state that the registry folds from the journal at `path`, or None if it folds none."""
    match path.split("/"):
        case ["access", "journal"]:
            return Access(store, actor=_ACTOR).follow()
        case ["models", model, "journal"]:
            return Registry(store, actor=_ACTOR).follow(model)
        case ["layers", layer, "journal"]:
            return Registry(store, actor=_ACTOR).follow_layer(layer)
        case ["experiments", experiment, "journal"]:
            return Registry(store, actor=_ACTOR).index(experiment)
        case ["experiment-notes", "journal"]:
            return Registry(store, actor=_ACTOR).follow_notes()
    return None


def entries_fold(store: ObjectStore, path: str) -> Fold[None]:
    """Open a journal whose state is unknown: its entries are checked, and that a snapshot names one of them."""
    return Fold(Journal(store, path, actor=_ACTOR), None, lambda _, __: None)
