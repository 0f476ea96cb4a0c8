"""Spending of teams by calendar month (UTC): CPU and GPU seconds of the attempts that have ended, each counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from toque.functions.runtime.durable.admission.occupancy import Spent
from toque.functions.runtime.receipt import Usage
from toque.registry.journal.entry import Entry
from toque.registry.journal.fold import Fold
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore

JOURNAL = "spending"
_MONTHS = 13
_RECENT = 1_024  # attempts that are remembered: one whose writer was killed is counted again within minutes, or never


@dataclass(frozen=True, slots=True)
class _State:
    """months: spent by month and team; recent: workers of the attempts that were counted last."""

    months: Mapping[str, Mapping[str, Spent]] = field(default_factory=dict)
    recent: tuple[str, ...] = ()


class Spending:
    """Sums of what the experiments in a store used, by team and month."""

    def __init__(self, store: ObjectStore, *, actor: str) -> None:
        journal = Journal(store, JOURNAL, actor=actor)
        self.fold = Fold(journal, _State(), _fold_entry, encode=_encode, decode=_decode)

    def add(self, worker: str, team: str, usage: Usage) -> None:
        """Count what an attempt used; one that is counted already is left alone. One read and one write."""
        body = {"worker": worker, "team": team, "cpu_s": usage.cpu_s, "gpu_s": usage.gpu_s}
        self.fold.transact(lambda state: None if worker in state.recent else body)

    def of_month(self, now: datetime) -> Mapping[str, Spent]:
        """What each team has spent in the month of `now`; one read."""
        return self.fold.refresh().months.get(_month(now), {})


def _month(at: datetime) -> str:
    return at.strftime("%Y-%m")


def _fold_entry(state: _State, entry: Entry) -> _State:
    body, month = entry.body, _month(entry.at)
    teams = dict(state.months.get(month, {}))
    teams[body["team"]] = teams.get(body["team"], Spent()) + Spent(body["cpu_s"], body["gpu_s"])
    months = dict(sorted({**state.months, month: teams}.items())[-_MONTHS:])
    return _State(months, (*state.recent, body["worker"])[-_RECENT:])


def _encode(state: _State) -> dict[str, Any]:
    months = {
        month: {team: [spent.cpu_s, spent.gpu_s] for team, spent in teams.items()}
        for month, teams in state.months.items()
    }
    return {"months": months, "recent": list(state.recent)}


def _decode(stored: dict[str, Any]) -> _State:
    months = {
        month: {team: Spent(*spent) for team, spent in teams.items()}
        for month, teams in stored["months"].items()
    }
    return _State(months, tuple(stored["recent"]))
