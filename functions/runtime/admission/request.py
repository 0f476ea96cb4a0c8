"""Requests of experiments, running or waiting, and the quotas of teams that bound them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, Field

from toque.functions.runtime.cards import share_of
from toque.functions.runtime.declaration import Demand
from toque.registry.access import DEFAULT_WORKSPACE

EVERYONE = "everyone"
YIELD_S = 45.0
"""Seconds in which a run that is asked to yield saves its state and ends; after them it is killed."""
MAX_SHARE = 1_000.0
"""Greatest weight: one beside which the least of the others is still seen."""
SLACK = 1e-9  # of rounding, in sums of fractions of a CPU
_ADDED: Mapping[str, Any] = {"gpu_hours": None, "money": None, "share": 1.0}  # absent from what 0.1 reads


class Quota(BaseModel, frozen=True, extra="forbid"):
    """Limits of what the experiments of a team, or of `everyone` together, occupy at a time; None: no limit.

    at_once: number of experiments; gpu_hours, money: budget of a calendar month (UTC); share: weight in the fair share of the
    team among the teams of its workspace; members: callers who belong to the team.
    """

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    at_once: int | None = Field(default=None, ge=0)
    gpu_hours: float | None = Field(default=None, ge=0)
    money: float | None = Field(default=None, ge=0)
    share: float = Field(default=1.0, gt=0, le=MAX_SHARE)
    members: tuple[str, ...] = ()

    def limits(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of every limit of what is occupied at a time."""
        for name in ("cpus", "gpus", "at_once"):
            if (limit := getattr(self, name)) is not None:
                yield name, limit

    def budgets(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of every budget of a month."""
        for name in ("gpu_hours", "money"):
            if (limit := getattr(self, name)) is not None:
                yield name, limit

    def stored(self) -> dict[str, Any]:
        """Convert to JSON; fields that releases before 0.2 refuse are left out unless they are set."""
        found = self.model_dump(mode="json")
        return {name: value for name, value in found.items() if name not in _ADDED or value != _ADDED[name]}


Quotas = Mapping[str, Quota]  # by team


@dataclass(frozen=True, slots=True)
class QuotaRequest:
    """Request of one experiment, running or waiting: its team, its resources, and since when it waits.

    cpus, gpus, memory_bytes: of all its `workers` together, gpus in cards, of which a slice is a part; card: type of its GPUs, None for any; limit_s: longest run time that
    it declared; preemptible: whether it saves its state and yields when it is asked to; started_at: None while it waits;
    backfilled: it started before one that has to wait for room; yielding: it was asked to yield; nodes: where its workers are, by
    name, or empty if that is not known.
    """

    invocation: str
    team: str
    cpus: float
    gpus: float
    priority: int
    at: datetime
    workers: int = 1
    card: str | None = None
    memory_bytes: int = 0
    limit_s: float | None = None
    preemptible: bool = False
    workspace: str = DEFAULT_WORKSPACE
    started_at: datetime | None = None
    backfilled: bool = False
    yielding: bool = False
    nodes: tuple[str, ...] = ()

    @property
    def at_once(self) -> int:
        """Number of experiments that the request counts as in a quota: always 1."""
        return 1

    @property
    def owner(self) -> tuple[str, str]:
        """Workspace and team that the request counts for."""
        return self.workspace, self.team

    @classmethod
    def of(cls, invocation: str, team: str, demand: Demand, at: datetime, **known: Any) -> Self:
        """Make the request of an invocation with this demand. known: other fields of it."""
        counted = {"workers": pieces_of(demand), "gpus": demand.gpus * share_of(demand.card)}
        taken = {name: value for name, value in asdict(demand).items() if name != "environment"}
        return cls(invocation, team, **(taken | counted), at=at, **known)

    def end(self, now: datetime) -> datetime | None:
        """Time by which it leaves its room for certain; None if it declared no limit."""
        if self.yielding:
            return now + timedelta(seconds=YIELD_S)
        if self.limit_s is None:
            return None
        return max(now, (self.started_at or now) + timedelta(seconds=self.limit_s))


def pieces_of(demand: Demand) -> int:
    """Count the workers of a demand that are placed each on one node."""
    return demand.workers or max(1, math.ceil(demand.gpus))


def team_of(caller: str, quotas: Quotas) -> str:
    """Return the team of a caller; a caller outside all teams is a team of one."""
    return next((team for team, quota in quotas.items() if caller in quota.members), caller)


def blocking_quota(request: QuotaRequest, running: Iterable[QuotaRequest], quotas: Quotas) -> str | None:
    """Find the team, or everyone, whose limits block `request` beside `running`; None if it may run."""
    running = list(running)
    own = [each for each in running if each.team == request.team]
    for team, occupying in ((request.team, own), (EVERYONE, running)):
        if exceeded_limit(request, occupying, quotas.get(team, Quota())) is not None:
            return team
    return None


def why_unsatisfiable(request: QuotaRequest, quotas: Quotas) -> str | None:
    """Say why `request` alone exceeds a quota; None if it does not."""
    for team in (request.team, EVERYONE):
        quota = quotas.get(team, Quota())
        name = exceeded_limit(request, (), quota)
        if name is not None:
            return (
                f"it asks for {name}={getattr(request, name):g} and the quota of {team!r} is "
                f"{getattr(quota, name):g}: ask for less, or raise it with set_quota and redrive"
            )
    return None


def exceeded_limit(request: QuotaRequest, occupying: Iterable[QuotaRequest], quota: Quota) -> str | None:
    """Find a limit that `request` would exceed beside `occupying`; None if there is none."""
    occupying = list(occupying)
    for name, limit in quota.limits():
        if sum(getattr(each, name) for each in (*occupying, request)) > limit + SLACK:
            return name
    return None
