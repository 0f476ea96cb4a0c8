"""Which experiments begin now: a pure rule over what runs, what waits and the quotas of teams.

The higher priority first; among equals the team that holds the smaller share of the whole; within a team who came first.
Nothing overtakes: what waits for its team's quota holds back its team, what waits for the whole holds back everybody, so
small ones cannot starve a large one. No quota means no limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from functions.runtime.declaration import Demand

EVERYONE = "everyone"
_SLACK = 1e-9  # sums of fractions of a CPU


class Quota(BaseModel):
    """What the experiments of a team, or of `everyone` together, may occupy at a time; None: any.

    at_once: how many they may be; members: the callers whose team it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    at_once: int | None = Field(default=None, ge=0)
    members: tuple[str, ...] = ()

    def limits(self) -> Iterator[tuple[str, float]]:
        """The limits that there are, by name."""
        for name in ("cpus", "gpus", "at_once"):
            if (limit := getattr(self, name)) is not None:
                yield name, limit


Quotas = Mapping[str, Quota]  # by team


@dataclass(frozen=True, slots=True)
class Ask:
    """An experiment that runs or waits: whose it is, what it takes, since when it waits."""

    invocation: str
    team: str
    cpus: float
    gpus: float
    priority: int
    at: datetime

    @property
    def at_once(self) -> int:
        """It is one experiment."""
        return 1

    @classmethod
    def of(cls, invocation: str, team: str, demand: Demand, at: datetime) -> Self:
        """One that demands so much."""
        return cls(invocation, team, **asdict(demand), at=at)


def team_of(caller: str, quotas: Quotas) -> str:
    """The team of a caller; who is in none is one of their own."""
    return next((team for team, quota in quotas.items() if caller in quota.members), caller)


def in_the_way(ask: Ask, running: Iterable[Ask], quotas: Quotas) -> str | None:
    """The team, or everyone, whose quota does not let `ask` run beside what runs; None if it may."""
    running = list(running)
    own = [each for each in running if each.team == ask.team]
    for team, beside in ((ask.team, own), (EVERYONE, running)):
        if _passed(ask, beside, quotas.get(team, Quota())) is not None:
            return team
    return None


def never(ask: Ask, quotas: Quotas) -> str | None:
    """Why `ask` is more than a quota even alone; None if it is not."""
    for team in (ask.team, EVERYONE):
        quota = quotas.get(team, Quota())
        name = _passed(ask, (), quota)
        if name is not None:
            return (
                f"it asks for {name}={getattr(ask, name):g} and the quota of {team!r} is "
                f"{getattr(quota, name):g}: ask for less, or raise it with set_quota and redrive"
            )
    return None


def admitted(running: Sequence[Ask], waiting: Iterable[Ask], quotas: Quotas) -> list[Ask]:
    """Those of the waiting that begin now, in order. What is more than a quota even alone is passed over."""
    queue = {each.invocation: each for each in waiting if never(each, quotas) is None}
    beside, chosen = list(running), []
    while queue:
        ask = _first(queue.values(), beside, quotas)
        full = in_the_way(ask, beside, quotas)
        if full == EVERYONE:
            break
        if full is not None:
            queue = {name: each for name, each in queue.items() if each.team != ask.team}
            continue
        del queue[ask.invocation]
        chosen.append(ask)
        beside.append(ask)
    return chosen


def in_turn(running: Sequence[Ask], waiting: Iterable[Ask], quotas: Quotas) -> list[Ask]:
    """The waiting in the order in which they would begin if there were room."""
    beside, queue = list(running), list(waiting)
    while queue:
        ask = _first(queue, beside, quotas)
        queue.remove(ask)
        beside.append(ask)
    return beside[len(running) :]


def _first(waiting: Collection[Ask], running: Sequence[Ask], quotas: Quotas) -> Ask:
    whole = quotas.get(EVERYONE, Quota())
    shares = {team: _share(team, running, whole) for team in {each.team for each in waiting}}
    return min(waiting, key=lambda each: (-each.priority, shares[each.team], each.at, each.invocation))


def _share(team: str, running: Iterable[Ask], whole: Quota) -> float:
    """What a team holds of the whole, by what it holds most of."""
    own = [each for each in running if each.team == team]
    return max(
        (sum(getattr(each, name) for each in own) / limit for name, limit in whole.limits() if limit),
        default=0.0,
    )


def _passed(ask: Ask, beside: Iterable[Ask], quota: Quota) -> str | None:
    """The limit that `ask` would pass."""
    beside = list(beside)
    for name, limit in quota.limits():
        if sum(getattr(each, name) for each in (*beside, ask)) > limit + _SLACK:
            return name
    return None
