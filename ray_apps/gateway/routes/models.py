"""Routes of models: list, policy, audit, history, and aliases with promotion and rollback.

Roles, fields and calls of the registry in the caller's name are here for all routes of models.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toque.ray_apps.admission import GuardedRoute, NotAdmitted, admitted_of, allowed
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, Name, Time
from toque.registry import (
    Damaged,
    ModelPolicy,
    ModelState,
    ModelVersion,
    Principal,
    Registry,
    Role,
    Traffic,
)

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])
Viewer = Annotated[Principal, allowed(Role.viewer)]
Operator = Annotated[Principal, allowed(Role.operator)]
Approver = Annotated[Principal, allowed(Role.approver)]
Admin = Annotated[Principal, allowed(Role.admin)]
Number = Annotated[int, Field(ge=1, le=2**31)]
VersionNumber = Annotated[int, Path(ge=1, le=2**31)]


class ChangeRequest(BaseModel):
    """A change to a model, with the reason that its journal keeps."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2000)


class ModelSummary(BaseModel):
    """Summary of a model: aliases, versions, traffic, and whether anything serves it: null where that cannot be told now."""

    name: str
    description: str
    created_at: datetime | None
    tags: dict[str, str]
    aliases: dict[str, int]
    versions: list[int]
    traffic: Traffic | None
    served: bool | None = None


class AliasChange(ChangeRequest):
    """The version that an alias shall point to; `expected`, if given, is the one it must point to now (null: no version)."""

    version: Number
    expected: Number | None = None
    override: str = Field(default="", max_length=2000)


class RollbackRequest(ChangeRequest):
    """A way back for an alias; `expected`, if given, is the version it must point to now."""

    expected: Number | None = None


class AuditResult(BaseModel):
    """How much of a model was read and found intact; `damaged` names the first thing that was not, if any."""

    entries: int = 0
    blobs: int = 0
    size_bytes: int = 0
    damaged: str | None = None


@router.get("", response_model=list[ModelSummary])
async def list_models(
    request: Request, _: Viewer, after: Name | None = None, limit: Annotated[int | None, Query(ge=1)] = None
) -> Json:
    """List the models by name with a summary of each; with `limit`, `after` is the last name of the page before."""
    served = await services_of(request).deployed.tell(admitted_of(request).workspace)

    def listed(registry: Registry) -> list[Any]:
        names = registry.list_models(after=after or "", limit=limit)
        return [_summary(registry.get_model(name), served(name)).model_dump(mode="json") for name in names]

    return await by_registry(request, listed)


@router.get("/{model}", response_model=ModelSummary)
async def get_model(request: Request, model: Name, _: Viewer) -> Json:
    """Get the summary of one model: aliases, versions, traffic."""
    served = await services_of(request).deployed.tell(admitted_of(request).workspace)
    return await by_registry(request, lambda registry: _summary(registry.get_model(model), served(model)))


@router.get("/{model}/policy", response_model=ModelPolicy)
async def get_policy(request: Request, model: Name, _: Viewer) -> Json:
    """Get the model's policy: what a version needs before it may go live. The header ETag is its digest, for `If-Match`."""
    return await _policy(request, lambda registry: registry.get_model(model).policy)


@router.put("/{model}/policy", response_model=ModelPolicy)
async def set_policy(
    request: Request,
    model: Name,
    body: ModelPolicy,
    _: Admin,
    if_match: Annotated[str | None, Header(max_length=100)] = None,
) -> Json:
    """Set what a version of the model needs before it may go live, as a whole; a live version stays live.

    What the body leaves out has its default, so an empty one is refused: name at least one field.
    if_match: the ETag of the policy that is to be replaced; 409 if the model has another by now.
    """
    if not body.model_fields_set:
        raise Problem(
            409,  # it fits the schema
            'body={} would remove every guard, gate and approval; name what the policy demands, as in {"approvals": 1}',
            kind="invalid-policy",
        )
    expected = None if if_match is None else if_match.strip('"')

    def changed(registry: Registry) -> ModelPolicy:
        from toque.functions.evaluation import (  # late: it brings torch, seconds
            EvaluationError,
            check_policy_gates,
        )

        try:
            check_policy_gates(body)
        except (EvaluationError, ValidationError) as error:  # the latter for a name that no gate may have
            raise Problem(409, str(error), kind="invalid-policy") from error
        return registry.set_policy(model, body, expected=expected).policy

    return await _policy(request, changed)


async def _policy(request: Request, call: Callable[[Registry], ModelPolicy]) -> Json:
    """Answer with the policy that a call gives, its digest in the header."""
    digests: list[str] = []

    def noted(registry: Registry) -> ModelPolicy:
        policy = call(registry)
        digests.append(policy.digest)
        return policy

    answer = await by_registry(request, noted)
    answer.headers["ETag"] = f'"{digests[0]}"'
    return answer


@router.post("/{model}/audit", response_model=AuditResult)
async def audit(request: Request, model: Name, _: Operator) -> Json:
    """Verify the model's hash chain and every file and signature, which reads all of them."""

    def audited(registry: Registry) -> AuditResult:
        try:
            return AuditResult(**registry.verify(model).model_dump())
        except Damaged as damage:
            return AuditResult(damaged=str(damage))

    return await by_registry(request, audited)


@router.get("/{model}/history")
async def get_history(
    request: Request, model: Name, _: Viewer, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
) -> Json:
    """List the latest entries of the model's journal, oldest first: who changed what, when and why."""

    def listed(registry: Registry) -> list[Any]:
        return [entry.to_json() for entry in registry.history(model, last=limit)][-limit:]

    return await by_registry(request, listed)


@router.get("/{model}/aliases/{alias}")
async def get_alias(request: Request, model: Name, alias: Name, _: Viewer, at: Time | None = None) -> Json:
    """Get the version that an alias points to, now or at a past moment; null if it points to no version."""

    def found(registry: Registry) -> Any:
        aliases = (registry.model_at(model, at) if at else registry.get_model(model)).aliases
        return {"model": model, "alias": alias, "version": aliases.get(alias)}

    return await by_registry(request, found)


@router.put("/{model}/aliases/{alias}", response_model=ModelVersion)
async def set_alias(request: Request, model: Name, alias: Name, body: AliasChange, _: Operator) -> Json:
    """Point an alias to a version; 409 if it is not at the expected version, or the policy is not met.

    An override of the policy needs the role admin.
    """
    require_may_override(request, model, body.override)
    return await by_registry(
        request, lambda registry: registry.set_alias(model, alias, **_alias_arguments(body))
    )


@router.post("/{model}/promote", response_model=ModelVersion)
async def promote(request: Request, model: Name, body: AliasChange, _: Operator) -> Json:
    """Make a version the champion, and end the model's canaries, shadows and rules to a version, in one change.

    An override of the policy needs the role admin.
    """
    require_may_override(request, model, body.override)
    return await by_registry(request, lambda registry: registry.promote(model, **_alias_arguments(body)))


@router.post("/{model}/aliases/{alias}/rollback", response_model=ModelVersion)
async def rollback(request: Request, model: Name, alias: Name, body: RollbackRequest, _: Operator) -> Json:
    """Point an alias back to its previous version; 409 if it is not at the expected one."""
    given = {"expected": body.expected} if "expected" in body.model_fields_set else {}
    return await by_registry(
        request, lambda registry: registry.rollback(model, alias, reason=body.reason, **given)
    )


async def by_registry(request: Request, work: Callable[[Registry], Any]) -> Json:
    """Run `work` on the registry of the request's workspace in the caller's name; returns its result as JSON."""
    context = await context_of(request)

    def done() -> Any:
        result = work(context.registry())
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else result

    return Json(await services_of(request).run(done))


def number_or_alias(text: str) -> int | str:
    """Parse a version in a path: a number, or else an alias."""
    return int(text) if text.isascii() and text.isdigit() else text


def require_may_override(request: Request, model: str, override: str) -> None:
    """Check that only an admin goes against the policy. Raises: NotAdmitted 403."""
    admitted = admitted_of(request)
    if override and not admitted.may(Role.admin, model=model):
        principal = admitted.principal
        raise NotAdmitted(
            403,
            f"{principal.name} has {principal.roles}; an override of {model}'s policy needs admin: ask one",
        )


def _alias_arguments(body: AliasChange) -> dict[str, Any]:
    given = {"version": body.version, "reason": body.reason, "override": body.override}
    return given | ({"expected": body.expected} if "expected" in body.model_fields_set else {})


def _summary(state: ModelState, served: bool | None = None) -> ModelSummary:  # noqa: FBT001  # as the field is
    return ModelSummary(
        name=state.name,
        description=state.description,
        created_at=state.created_at,
        tags=dict(state.tags),
        aliases=dict(state.aliases),
        versions=[each.version for each in state.versions.values() if each.deleted_at is None],
        traffic=state.traffic,
        served=served,
    )
