"""The states that features and functions fold from their journals, for an audit to fold them again."""

from __future__ import annotations

from typing import Any

from toque.featurestore.applied.definitions import Definitions
from toque.featurestore.sources.load_log import loads_in
from toque.featurestore.vectors.builds import IndexBuilds
from toque.functions.alerting.jobs import alert_journal
from toque.functions.monitoring.alarms import alarm_journal
from toque.functions.retraining.triggers import retrains
from toque.functions.rollout.controller import rollout_journal
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.durable.costs import JOURNAL as SPENDING
from toque.functions.runtime.durable.costs import Spending
from toque.functions.runtime.durable.slots import quotas_in
from toque.registry import Fold, Journal, ObjectStore, utc_now

_ACTOR = "audit"


def platform_fold(store: ObjectStore, path: str) -> Fold[Any] | None:
    """Open the state that a feature store or a function folds from the journal at `path`, or None if none is known."""
    fold: Fold[Any] | None = None
    with use_context(Context(store, store.url, actor=_ACTOR)):
        match path.split("/"):
            case ["alarms", model]:
                fold = alarm_journal(model, store=store, clock=utc_now, actor=_ACTOR)
            case ["alerts", model]:
                fold = alert_journal(model)
            case ["features", _, "definitions"]:
                fold = Definitions(Journal(store, path, actor=_ACTOR)).follow()
            case ["features", _, "sources", _]:
                fold = loads_in(Journal(store, path, actor=_ACTOR))
            case ["features", project, "indexes", view, field]:
                fold = IndexBuilds(store, project, view, field, actor=_ACTOR, clock=utc_now).follow()
            case ["quotas"]:
                fold = quotas_in(store, _ACTOR)
            case ["retraining", model]:
                fold = retrains(model)
            case ["rollouts", model]:
                fold = rollout_journal(model, store=store, clock=utc_now, actor=_ACTOR)
            case [name] if name == SPENDING:
                fold = Spending(store, actor=_ACTOR).fold
    return fold
