"""Quotas of teams for experiments: what runs within them, and what waits for its turn.

A training, sweep or batch inference that is submitted is an experiment. It takes a slot of its team's quota while it runs,
and waits in the ledger until there is one; `toque.functions.runtime.durable.experiments` decides the order.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.runtime import catalog
from toque.functions.runtime.admission.request import EVERYONE, MAX_SHARE, Quota, QuotaRequest
from toque.functions.runtime.admission.rule import admission_order, schedule
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.slots import QuotaSlots, allotment_in, quotas_in
from toque.functions.runtime.function import function
from toque.functions.runtime.run import cluster, room
from toque.registry.names import check_name


class Admission(BaseModel):
    """Experiment that runs or waits.

    workers, cpus, gpus, card: what it takes, the numbers of all workers together; since: when it was submitted; started_at: when
    its present run began; yields: whether it was asked to yield; waits_for: what it waits for, None while it runs; state: that,
    or "runs" or "yields".
    """

    model_config = ConfigDict(frozen=True)

    invocation: str
    function: str
    caller: str
    team: str
    cpus: float
    gpus: float
    priority: int
    since: datetime
    waits_for: str | None
    workers: int = 1
    card: str | None = None
    preemptible: bool = False
    started_at: datetime | None = None
    yields: bool = False
    preemptions: int = 0
    state: str = "runs"


class Budget(BaseModel):
    """Budget of a team in this calendar month (UTC). spent: by attempts that have ended; those that run now come on top."""

    model_config = ConfigDict(frozen=True)

    team: str
    budget: str
    spent: float
    limit: float


@function(http=True, role="admin")
def set_quota(
    team: Annotated[str, Field(description='Name of the team, or "everyone" for all teams together.')],
    cpus: Annotated[
        float | None,
        Field(
            le=1_000_000_000,
            ge=0,
            description="Processors that its experiments occupy at a time; no limit unless given.",
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        Field(
            le=1_000_000_000,
            ge=0,
            description=(
                "GPUs that its experiments occupy at a time, "
                "a slice as its part of a card; no limit unless given."
            ),
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        Field(
            le=1_000_000,
            ge=0,
            description="Number of its experiments that run at a time; no limit unless given.",
        ),
    ] = None,
    members: Annotated[
        list[str] | None,
        Field(description="Callers who belong to the team, each to one team at most; nobody unless given."),
    ] = None,
    gpu_hours: Annotated[
        float | None,
        Field(
            le=1_000_000_000,
            ge=0,
            description="Hours of GPUs that it may use in each calendar month (UTC); no limit unless given.",
        ),
    ] = None,
    money: Annotated[
        float | None,
        Field(
            le=1_000_000_000_000,
            ge=0,
            description=(
                "What it may spend in each calendar month (UTC), "
                "by the profile's `prices`; no limit unless given."
            ),
        ),
    ] = None,
    share: Annotated[
        float,
        Field(
            gt=0,
            le=MAX_SHARE,
            description="Weight of the team in the fair share among the teams of its workspace, in (0, 1000].",
        ),
    ] = 1.0,
) -> dict[str, Quota]:
    """Limit what the experiments of a team may occupy at a time and use in a month; returns all quotas.

    A team's earlier quota is replaced. Running experiments go on.
    Raises: InvalidInput for an invalid name; ValueError for a caller of another team, a share of "everyone", or a budget in
    money where no prices are known.
    """
    check_name(team, what="team")
    if team == EVERYONE and share != 1.0:
        raise ValueError(
            f"share={share:g} of {EVERYONE!r}: the weight of a workspace among all is set by an admin of all workspaces, "
            "with `toque access workspace set NAME --share`"
        )
    if money is not None and context().prices is None:
        raise ValueError(
            f"money={money:g}: no prices are known; set `prices` in the profile, or give gpu_hours"
        )
    quota = Quota(
        cpus=cpus,
        gpus=gpus,
        at_once=at_once,
        members=tuple(members or ()),
        gpu_hours=gpu_hours,
        money=money,
        share=share,
    )
    quotas = quotas_in(context().store, context().actor)
    for name, other in quotas.refresh().items():
        twice = sorted(set(other.members) & set(quota.members)) if name != team else []
        if twice:
            raise ValueError(f"members={twice} of {team!r} are in {name!r}: take them out there first")
    quotas.transact(lambda _: {"team": team, "quota": quota.stored()})
    return quotas.state


@function(http=True, role="admin")
def remove_quota(
    team: Annotated[
        str, Field(description='Name of the team, or "everyone" for the quota of all teams together.')
    ],
) -> dict[str, Quota]:
    """Let a team's experiments occupy what they like, and forget its members; returns the other quotas."""
    quotas = quotas_in(context().store, context().actor)
    quotas.transact(lambda there: {"team": team, "quota": None} if team in there else None)
    return quotas.state


@function(http=True, role="viewer", in_thread=True)
def quotas() -> dict[str, Quota]:
    """List the quotas of all teams, by name."""
    return quotas_in(context().store, context().actor).refresh()


@function(http=True, role="viewer", in_thread=True)
def budgets() -> list[Budget]:
    """List the budgets of this month, and what is spent of each."""
    return [
        Budget(team=team, budget=budget, spent=spent, limit=limit)
        for team, budget, spent, limit in _slots().spent()
    ]


@function(
    http=True,
    role="viewer",
    in_thread=True,
    command="invocations queue",
    view=View(
        columns="invocation | function | team | GPUs: gpus | CPUs: cpus | priority | submitted: since | waits for: state",
        wide="caller | workers | card | preemptible | started: started_at | preemptions",
        empty="no experiment runs or waits",
    ),
)
def admissions() -> list[Admission]:
    """List the running experiments of this workspace, and the waiting ones in the order of their start."""
    ledger, slots = ledger_of(context()), _slots()
    records: dict[str, Record] = {}
    for record in ledger.unfinished():
        found = catalog.find(record.reference)
        if found is not None and found.demand and (record.runnable or record.status == "running"):
            records[record.id] = record
    queue, now = slots.posted(records.values()), ledger.clock()
    capacity = room.cards() if cluster.running() else None
    decision = schedule(queue.waiting, queue.running, capacity, queue.shares, now)
    starts = {each.invocation for each in decision.start}
    ordered = admission_order(queue.running, queue.waiting, queue.shares, now)
    return [_admission(records[each.invocation], each, None) for each in queue.running] + [
        _admission(
            records[each.invocation],
            each,
            "its turn" if each.invocation in starts else decision.wait.get(each.invocation, "its turn"),
        )
        for each in ordered
    ]


def _slots() -> QuotaSlots:
    used = context()
    return QuotaSlots(
        ledger_of(used), workspace=used.workspace, prices=used.prices, allotment=allotment_in(used)
    )


def _admission(record: Record, request: QuotaRequest, waits_for: str | None) -> Admission:
    return Admission(
        invocation=record.id,
        function=record.function,
        caller=record.caller,
        team=request.team,
        cpus=request.cpus,
        gpus=request.gpus,
        priority=request.priority,
        since=record.submitted_at,
        waits_for=waits_for,
        workers=request.workers,
        card=request.card,
        preemptible=request.preemptible,
        started_at=request.started_at,
        yields=request.yielding,
        preemptions=record.preemptions,
        state=waits_for or ("yields" if request.yielding else "runs"),
    )
