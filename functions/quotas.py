"""Quotas of teams for experiments: what runs within them, and what waits for its turn.

A training, sweep or batch inference that is submitted is an experiment. It takes a slot of its team's quota while it runs,
and waits in the ledger until there is one; `functions.runtime.durable.quota_admission` decides the order.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from functions.runtime import catalog
from functions.runtime.context import context
from functions.runtime.durable.invocation import ledger_of
from functions.runtime.durable.quota_admission import (
    EVERYONE,
    Quota,
    QuotaRequest,
    admission_order,
    blocking_quota,
    team_of,
)
from functions.runtime.durable.quota_slots import demand_of, quotas_in
from functions.runtime.durable.record import Record
from functions.runtime.function import function
from registry.names import check_name

_LISTED = 10_000


class Admission(BaseModel):
    """Experiment that runs or waits.

    since: when it was submitted; waits_for: what it waits for, None while it runs.
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


@function(http=True, role="admin")
def set_quota(
    team: str,
    cpus: float | None = None,
    gpus: float | None = None,
    at_once: int | None = None,
    members: list[str] | None = None,
) -> dict[str, Quota]:
    """Limit what the experiments of a team may occupy at a time; returns all quotas.

    team: its name, or "everyone" for all teams together; at_once: how many of them; None: no limit; members: callers who belong to
    the team. A team's earlier quota is replaced. Running experiments go on.
    Raises: InvalidInput for an invalid name; ValidationError for a limit below 0; ValueError for a caller of another team.
    """
    check_name(team, what="team")
    quota = Quota(cpus=cpus, gpus=gpus, at_once=at_once, members=tuple(members or ()))
    quotas = quotas_in(context().store, context().actor)
    for name, other in quotas.refresh().items():
        twice = sorted(set(other.members) & set(quota.members)) if name != team else []
        if twice:
            raise ValueError(f"members={twice} of {team!r} are in {name!r}: take them out there first")
    quotas.transact(lambda _: {"team": team, "quota": quota.model_dump(mode="json")})
    return quotas.state


@function(http=True, role="admin")
def remove_quota(team: str) -> dict[str, Quota]:
    """Let a team's experiments occupy what they like, and forget its members; returns the other quotas."""
    quotas = quotas_in(context().store, context().actor)
    quotas.transact(lambda there: {"team": team, "quota": None} if team in there else None)
    return quotas.state


@function(http=True, role="viewer")
def quotas() -> dict[str, Quota]:
    """List the quotas of all teams, by name."""
    return quotas_in(context().store, context().actor).refresh()


@function(http=True, role="viewer")
def admissions() -> list[Admission]:
    """List the running experiments, and the waiting ones in the order of their start; reads every invocation."""
    ledger = ledger_of(context())
    there = quotas_in(context().store, context().actor).refresh()
    experiments: dict[str, tuple[Record, QuotaRequest]] = {}
    for record in ledger.invocations(limit=_LISTED):
        found = catalog.find(record.reference)
        if found is not None and found.demand and (record.runnable or record.status == "running"):
            team = team_of(record.caller, there)
            experiments[record.id] = (
                record,
                QuotaRequest.of(record.id, team, demand_of(record, ledger), record.submitted_at),
            )
    running = [ask for record, ask in experiments.values() if record.status == "running"]
    waiting = [ask for record, ask in experiments.values() if record.status != "running"]
    ordered = (*running, *admission_order(running, waiting, there))
    return [_admission(*experiments[ask.invocation], running, there) for ask in ordered]


def _admission(
    record: Record, ask: QuotaRequest, running: list[QuotaRequest], there: dict[str, Quota]
) -> Admission:
    waits_for = None
    if record.status != "running":
        team = blocking_quota(ask, running, there)
        waits_for = {None: "its turn", EVERYONE: "room in the quota of everyone"}.get(
            team, f"room in the quota of its team {team!r}"
        )
    return Admission(
        invocation=record.id,
        function=record.function,
        caller=record.caller,
        team=ask.team,
        cpus=ask.cpus,
        gpus=ask.gpus,
        priority=ask.priority,
        since=record.submitted_at,
        waits_for=waits_for,
    )
