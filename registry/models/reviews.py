"""Pure decisions about what stands beside a version: reviews, gate outcomes and tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from toque.registry.errors import InvalidInput, Refused
from toque.registry.models.decisions import Body, require_version
from toque.registry.models.state import ModelState
from toque.registry.models.versions import SERVING_TAGS, ModelVersion, finite
from toque.registry.names import check_name

_CEILING_WINDOW = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One actor's approval or rejection, as it is asked for; the fields are those of `Approval`."""

    actor: str
    approved: bool
    comment: str = ""
    accept_code: tuple[str, ...] = ()
    automatic: bool = False


def review(state: ModelState, number: int, asked: Review, *, now: datetime) -> Body | None:
    """Approve or reject a version.

    Raises: NotFound; InvalidInput; Refused if the policy does not accept this actor's approval, or an automatic one.
    """
    version = require_version(state, number)
    given = (
        asked.actor,
        asked.approved,
        asked.comment,
        asked.accept_code,
        asked.automatic,
        state.policy.digest,
    )
    if given in {
        (a.actor, a.approved, a.comment, a.accept_code, a.automatic, a.policy) for a in version.approvals
    }:
        return None
    if asked.approved:
        _require_may_approve(state, version, asked, now)
    elif state.uses(number):
        raise Refused(f"{state.name}@{number} is live ({', '.join(state.uses(number))}); roll back first")
    body: Body = {"kind": "review", "version": number, "approved": asked.approved, "comment": asked.comment}
    body |= {"accept_code": list(asked.accept_code)} if asked.accept_code else {}
    return body | ({"automatic": True} if asked.automatic else {})


def _require_may_approve(state: ModelState, version: ModelVersion, asked: Review, now: datetime) -> None:
    policy, where = state.policy, f"{state.name}@{version.version}"
    own = asked.actor == version.author and not policy.author_may_approve
    if own and (policy.guarded or asked.accept_code):
        raise Refused(f"{where}: {asked.actor!r} registered it and may not approve it too; ask another")
    if policy.approvers and asked.actor not in policy.approvers:
        raise Refused(f"{where}: {asked.actor!r} is not among its approvers {sorted(policy.approvers)}")
    unknown = sorted(set(asked.accept_code) - set(version.code_files))
    if unknown:
        raise InvalidInput(
            f"accept_code={unknown}: {where} has no such files that execute code; it has {list(version.code_files)}"
        )
    if asked.automatic:
        _require_automatic(state, now)


def _require_automatic(state: ModelState, now: datetime) -> None:
    allowed = state.policy.automatic_approval
    if allowed is None:
        raise Refused(
            f"{state.name}: its policy has no automatic_approval; a person must approve, or an admin switch it on"
        )
    given = sum(
        approval.automatic and approval.at > now - _CEILING_WINDOW
        for version in state.versions.values()
        for approval in version.approvals
    )
    if allowed.max_per_30_days is not None and given >= allowed.max_per_30_days:
        raise Refused(
            f"{state.name}: {given} automatic approvals in {_CEILING_WINDOW.days} days, its policy allows "
            f"{allowed.max_per_30_days}; a person must approve this one"
        )


def record_gate(
    state: ModelState, number: int, gate: str, *, passed: bool, details: Mapping[str, Any], demand: str
) -> Body:
    """Record the outcome of a gate. demand: digest of the limits and data that judged.

    Raises: NotFound; InvalidInput; Refused if the policy demands others.
    """
    require_version(state, number)
    check_name(gate, what="gate")
    demanded = state.policy.demand(gate)
    if demanded is not None and demand != demanded.digest:
        how = "other limits or data" if demand else "no limits at all, by hand"
        raise Refused(
            f"{state.name}@{number}: gate {gate!r} was judged by {how}, and the model's policy sets them; "
            "run evaluate_gate, or evaluate_answers of a language model, which take them from there"
        )
    body: Body = {
        "kind": "gate",
        "version": number,
        "gate": gate,
        "passed": passed,
        "details": finite(details),
    }
    return body | ({"demand": demand} if demand else {})


def set_tags(state: ModelState, number: int, tags: Mapping[str, str | None]) -> Body | None:
    """Change tags of a version (None removes one). Raises: NotFound; Refused for frozen tags."""
    version = require_version(state, number)
    changed = {tag for tag, value in tags.items() if version.tags.get(tag) != value}
    if not changed:
        return None
    served, why = sorted(changed & SERVING_TAGS), _why_frozen(state, version)
    if served and why:
        raise Refused(
            f"{state.name}@{number} {why}: its tags {served} change how it is served and are frozen; "
            "register a new version with them"
        )
    return {"kind": "version-changed", "version": number, "tags": dict(tags)}


def _why_frozen(state: ModelState, version: ModelVersion) -> str:
    """Say why the version's serving tags are frozen; "" if they are not."""
    approvers = [approval.actor for approval in version.approvals if approval.approved]
    if approvers:
        return f"is approved by {', '.join(approvers)}"
    uses = state.uses(version.version)
    if uses:
        return f"is live ({', '.join(uses)})"
    earlier = any(version.version in past for past in state.past.values())
    return "was live, and a rollback may bring it back" if earlier else ""
