"""The states that features and functions fold from their journals, for an audit to fold them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featurestore.applied.definitions import Definitions
from functions.alerting.jobs import alert_journal
from functions.monitoring.alarms import alarm_journal
from functions.retraining.triggers import retrains
from functions.rollout.controller import rollout_journal
from functions.runtime.context import Context, use_context
from functions.runtime.durable.admission.slots import quotas_in
from functions.runtime.durable.admission.spending import Spending
from registry import Fold, Journal, ObjectStore, utc_now

_ACTOR = "audit"


def platform_fold(store: ObjectStore, path: str) -> Fold[Any] | None:
    """Open the state that a feature store or a function folds from the journal at `path`, or None if none is known."""
    folder, _, name = path.partition("/")
    openers: dict[str, Callable[[], Fold[Any]]] = {
        "alarms": lambda: alarm_journal(name, store=store, clock=utc_now, actor=_ACTOR),
        "alerts": lambda: alert_journal(name),
        "features": lambda: Definitions(Journal(store, path, actor=_ACTOR)).follow(),
        "quotas": lambda: quotas_in(store, _ACTOR),
        "retraining": lambda: retrains(name),
        "spending": lambda: Spending(store, actor=_ACTOR).fold,
        "rollouts": lambda: rollout_journal(name, store=store, clock=utc_now, actor=_ACTOR),
    }
    open_fold = openers.get(folder)
    if open_fold is None:
        return None
    with use_context(Context(store, store.url, actor=_ACTOR)):
        return open_fold()
