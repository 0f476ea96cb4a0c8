"""Admission of experiments: a pure rule over the running ones, the waiting ones and the quotas of teams.

The higher priority goes first; among equals the team with the smaller dominant share of the quota of
everyone; within a team the earlier one. There is no backfilling: an experiment that waits for its team's
quota blocks its team, one that waits for the quota of everyone blocks all teams, so small experiments cannot
starve a large one. No quota means no limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from functions.runtime.declaration import Demand

EVERYONE = "everyone"
_SLACK = 1e-9  # of rounding, in sums of fractions of a CPU


class Quota(BaseModel):
    """Limits of what the experiments of a team, or of `everyone` together, occupy at a time; None: no limit.

    at_once: number of experiments; members: callers who belong to the team.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    at_once: int | None = Field(default=None, ge=0)
    members: tuple[str, ...] = ()

    def limits(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of every limit that is set."""
        for name in ("cpus", "gpus", "at_once"):
            if (limit := getattr(self, name)) is not None:
                yield name, limit


Quotas = Mapping[str, Quota]  # by team


@dataclass(frozen=True, slots=True)
class QuotaRequest:
    """Request of one experiment, running or waiting: its team, its resources, and since when it waits."""

    invocation: str
    team: str
    cpus: float
    gpus: float
    priority: int
    at: datetime

    @property
    def at_once(self) -> int:
        """Number of experiments that the request counts as in a quota: always 1."""
        return 1

    @classmethod
    def of(cls, invocation: str, team: str, demand: Demand, at: datetime) -> Self:
        """Make the request of an invocation with this demand."""
        return cls(invocation, team, **asdict(demand), at=at)


def team_of(caller: str, quotas: Quotas) -> str:
    """Return the team of a caller; a caller outside all teams is a team of one."""
    return next((team for team, quota in quotas.items() if caller in quota.members), caller)


def blocking_quota(request: QuotaRequest, running: Iterable[QuotaRequest], quotas: Quotas) -> str | None:
    """Find the team, or everyone, whose quota blocks `request` beside `running`; None if it may run."""
    running = list(running)
    own = [each for each in running if each.team == request.team]
    for team, occupying in ((request.team, own), (EVERYONE, running)):
        if _exceeded_limit(request, occupying, quotas.get(team, Quota())) is not None:
            return team
    return None


def why_unsatisfiable(request: QuotaRequest, quotas: Quotas) -> str | None:
    """Say why `request` alone exceeds a quota; None if it does not."""
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
    """Choose the waiting requests that begin now, in order; one that alone exceeds a quota is passed over."""
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
    """Sort the waiting requests in the order in which they would begin if there were room."""
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
    """Compute a team's share of the total quota, in the resource of which it holds the largest share."""
    own = [each for each in running if each.team == team]
    return max(
        (sum(getattr(each, name) for each in own) / limit for name, limit in total.limits() if limit),
        default=0.0,
    )


def _exceeded_limit(request: QuotaRequest, occupying: Iterable[QuotaRequest], quota: Quota) -> str | None:
    """Find a limit that `request` would exceed beside `occupying`; None if there is none."""
    occupying = list(occupying)
    for name, limit in quota.limits():
        if sum(getattr(each, name) for each in (*occupying, request)) > limit + _SLACK:
            return name
    return None
