"""Names of the schedules and subscriptions that functions declare, which stay theirs however the declaration changes.

The names of a workspace are a journal. A trigger is recognised by what it says: first by all of it, so that triggers may change
places, then by its source alone, so that its arguments may change. Any other one is new and gets a name that nothing is stored
under. Releases without this journal named by position: a function that is not in it yet takes over what is stored so, where it fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Literal, NamedTuple, TypeVar

from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Cron, OnEvent
from toque.registry.journal import Entry, Fold, Journal

PATH = "trigger-names"

T = TypeVar("T", Cron, OnEvent)
Kind = Literal["schedule", "subscription"]
State = dict[str, dict[str, list[Any]]]  # kind and function -> name -> source, digest, whether it is declared


class TriggerKey(NamedTuple):
    """Content by which a trigger is recognised: its source (a topic, or an expression with its zone), and a digest of all it says."""

    source: str
    digest: str

    @classmethod
    def of(cls, trigger: Cron | OnEvent) -> TriggerKey:
        """Make the key of a trigger."""
        if isinstance(trigger, Cron):
            source, *content = trigger.text, dict(trigger.arguments), trigger.tick_as
        else:
            source, *content = trigger.topic, dict(trigger.where), dict(trigger.arguments), trigger.payload_as
        text = json.dumps([source, *content], sort_keys=True, default=repr)
        return cls(source, hashlib.sha256(text.encode()).hexdigest()[:16])


def names_of(
    used: Context,
    kind: Kind,
    function: str,
    triggers: Sequence[T],
    *,
    fits: Callable[[str, T], bool | None],
    record: bool,
) -> list[str]:
    """Find the names of a function's triggers, in their order; makes no request if they are as they were.

    fits: whether what is stored under a name may be a trigger's; None: nothing is. record: whether new names are recorded.
    """
    group, declared = f"{kind} {function}", tuple(triggers)
    cached = _cache.get((used.store_url, group))
    if cached is not None and cached[0] == declared:
        return cached[1]
    names: list[str] = []

    def decide(state: State) -> dict[str, Any] | None:
        names[:] = _assign(state, group, declared, fits)
        keys = {name: list(TriggerKey.of(trigger)) for name, trigger in zip(names, declared, strict=True)}
        recorded = {name: key for name, (*key, now) in state.get(group, {}).items() if now}
        return None if recorded == keys else {"group": group, "names": keys}

    fold = _fold_of(used)
    if record:
        fold.transact(decide)
        _cache[used.store_url, group] = declared, names
    else:
        decide(fold.refresh())
    return names


def match(before: Mapping[str, Sequence[Any]], keys: Sequence[TriggerKey]) -> list[str | None]:
    """Match triggers with the names that a function's triggers had before; None for those that are new."""
    names: list[str | None] = [None] * len(keys)

    def take(same: Callable[[TriggerKey, Sequence[Any]], bool]) -> None:
        for number, key in enumerate(keys):
            if names[number] is None:
                free = (name for name, stored in before.items() if name not in names and same(key, stored))
                names[number] = next(free, None)

    take(lambda key, stored: key.digest == stored[1])
    take(lambda key, stored: key.source == stored[0] and stored[2])
    return names


def _assign(
    state: State, group: str, triggers: Sequence[T], fits: Callable[[str, T], bool | None]
) -> list[str]:
    before, function = state.get(group, {}), group.partition(" ")[2]
    names = match(before, [TriggerKey.of(trigger) for trigger in triggers])
    if group not in state:
        by_place = list(islice(_numbered(function), len(triggers)))
        for shift in range(len(triggers)):  # what an older release stored, first by the place of today
            for number, trigger in enumerate(triggers):
                name = by_place[number - shift]
                if names[number] is None and name not in names and fits(name, trigger):
                    names[number] = name
    for number, trigger in enumerate(triggers):
        if names[number] is None:
            free = (name for name in _numbered(function) if name not in before and name not in names)
            names[number] = next(name for name in free if fits(name, trigger) is None)
    return [str(name) for name in names]


def _numbered(function: str) -> Iterator[str]:
    return (function if number == 1 else f"{function}-{number}" for number in count(1))


_cache: dict[tuple[str, str], tuple[tuple[Cron | OnEvent, ...], list[str]]] = {}
_folds: dict[tuple[str, str], Fold[State]] = {}


def _fold_of(used: Context) -> Fold[State]:
    key = (used.store_url, used.actor)
    if key not in _folds:
        journal = Journal(used.store, PATH, actor=used.actor)
        _folds[key] = Fold(journal, {}, _fold_entry, encode=dict, decode=dict)
    return _folds[key]


def _fold_entry(state: State, entry: Entry) -> State:
    group, names = entry.body["group"], entry.body["names"]
    former = {name: [*key, False] for name, (*key, _) in state.get(group, {}).items()}
    return state | {group: former | {name: [*key, True] for name, key in names.items()}}
