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
class QuotaRequest:
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


def blocking_quota(request: QuotaRequest, running: Iterable[QuotaRequest], quotas: Quotas) -> str | None:
    """The team, or everyone, whose quota does not let `request` run beside what runs; None if it may."""
    running = list(running)
    own = [each for each in running if each.team == request.team]
    for team, occupying in ((request.team, own), (EVERYONE, running)):
        if _exceeded_limit(request, occupying, quotas.get(team, Quota())) is not None:
            return team
    return None


def why_unsatisfiable(request: QuotaRequest, quotas: Quotas) -> str | None:
    """Why `request` is more than a quota even alone; None if it is not."""
    for team in (request.team, EVERYONE):
        quota = quotas.get(team, Quota())
        name = _exceeded_limit(request, (), quota)
        if name is not None:
            return (
                f"it asks for {name}={getattr(request, name):g} and the quota of {team!r} is "
                f"{getattr(quota, name):g}: ask for less, or raise it with set_quota and redrive"
            )
    return None


def admit(
    running: Sequence[QuotaRequest], waiting: Iterable[QuotaRequest], quotas: Quotas
) -> list[QuotaRequest]:
    """Those of the waiting that begin now, in order. What is more than a quota even alone is passed over."""
    queue = {each.invocation: each for each in waiting if why_unsatisfiable(each, quotas) is None}
    occupying, chosen = list(running), []
    while queue:
        request = _next(queue.values(), occupying, quotas)
        blocking = blocking_quota(request, occupying, quotas)
        if blocking == EVERYONE:
            break
        if blocking is not None:
            queue = {name: each for name, each in queue.items() if each.team != request.team}
            continue
        del queue[request.invocation]
        chosen.append(request)
        occupying.append(request)
    return chosen


def admission_order(
    running: Sequence[QuotaRequest], waiting: Iterable[QuotaRequest], quotas: Quotas
) -> list[QuotaRequest]:
    """The waiting in the order in which they would begin if there were room."""
    occupying, queue = list(running), list(waiting)
    while queue:
        request = _next(queue, occupying, quotas)
        queue.remove(request)
        occupying.append(request)
    return occupying[len(running) :]


def _next(waiting: Collection[QuotaRequest], running: Sequence[QuotaRequest], quotas: Quotas) -> QuotaRequest:
    total = quotas.get(EVERYONE, Quota())
    shares = {team: _dominant_share(team, running, total) for team in {each.team for each in waiting}}
    return min(waiting, key=lambda each: (-each.priority, shares[each.team], each.at, each.invocation))


def _dominant_share(team: str, running: Iterable[QuotaRequest], total: Quota) -> float:
    """What a team holds of the whole, by what it holds most of."""
    own = [each for each in running if each.team == team]
    return max(
        (sum(getattr(each, name) for each in own) / limit for name, limit in total.limits() if limit),
        default=0.0,
    )


def _exceeded_limit(request: QuotaRequest, occupying: Iterable[QuotaRequest], quota: Quota) -> str | None:
    """The limit that `request` would pass."""
    occupying = list(occupying)
    for name, limit in quota.limits():
        if sum(getattr(each, name) for each in (*occupying, request)) > limit + _SLACK:
            return name
    return None
