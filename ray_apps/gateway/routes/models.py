"""Routes of the registry: models, versions, approvals, aliases and traffic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_apps.admission import GuardedRoute, NotAdmitted, admitted_of, allowed
from ray_apps.gateway.problems import Problem
from ray_apps.gateway.services import context_of, services_of
from ray_apps.gateway.wire import Json, Name, Time
from registry import (
    Damaged,
    LayerShare,
    ModelPolicy,
    ModelState,
    ModelVersion,
    NotFound,
    Principal,
    Registry,
    Role,
    Traffic,
    TrafficRule,
)

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])

Viewer = Annotated[Principal, allowed(Role.viewer)]
Operator = Annotated[Principal, allowed(Role.operator)]
Approver = Annotated[Principal, allowed(Role.approver)]
Admin = Annotated[Principal, allowed(Role.admin)]
Number = Annotated[int, Field(ge=1, le=2**31)]
VersionNumber = Annotated[int, Path(ge=1, le=2**31)]


class ModelSummary(BaseModel):
    """Summary of a model: aliases, versions, traffic."""

    name: str
    description: str
    created_at: datetime | None
    tags: dict[str, str]
    aliases: dict[str, int]
    versions: list[int]
    traffic: Traffic | None


class ChangeRequest(BaseModel):
    """A change to a model, with the reason that its journal keeps."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2000)


class AliasChange(ChangeRequest):
    """The version that an alias shall point to; `expected`, if given, is the one it must point to now (null: no version)."""

    version: Number
    expected: Number | None = None
    override: str = Field(default="", max_length=2000)


class RollbackRequest(ChangeRequest):
    """A way back for an alias; `expected`, if given, is the version it must point to now."""

    expected: Number | None = None


class ReviewComment(BaseModel):
    """Comment of an approver on a version."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field(default="", max_length=2000)


class ApprovalRequest(ReviewComment):
    """An approval, with the files of the version that can execute code and are accepted by name."""

    accept_code: list[str] = Field(default=[], max_length=1000)


class ModelCard(BaseModel):
    """Model card of a version, in Markdown."""

    card: str


class AuditResult(BaseModel):
    """How much of a model was read and found intact; `damaged` names the first thing that was not, if any."""

    entries: int = 0
    blobs: int = 0
    size_bytes: int = 0
    damaged: str | None = None


class SignatureUpload(BaseModel):
    """A signature made elsewhere (a bundle of the OpenSSF model-signing format), and the key it is checked with."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    public_key: str


class ArmShare(BaseModel):
    """The version of an arm and its share of the traffic, 0 to 1."""

    model_config = ConfigDict(extra="forbid")

    version: Number
    share: float = Field(ge=0, le=1)


class TrafficSplit(ChangeRequest):
    """A traffic split: arms beside the champion, which gets the rest; `expected` is the `entry` it was decided on.

    With a `layer` the arms share that part of it only, and none of its units is in another model's experiment. `rules`
    are applied first: requests whose attributes meet a rule go to the version of that rule.
    """

    arms: dict[Name, ArmShare] = Field(default={}, json_schema_extra={"additionalProperties": False})
    shadows: list[Number] = []
    layer: LayerShare | None = None
    rules: list[TrafficRule] = []
    expected: int | None = None
    override: str = Field(default="", max_length=2000)


async def by_registry(request: Request, work: Callable[[Registry], Any]) -> Json:
    """Run `work` on the registry of the request's workspace in the caller's name; returns its result as JSON."""
    context = await context_of(request)

    def done() -> Any:
        result = work(context.registry())
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else result

    return Json(await services_of(request).run(done))


@router.get("", response_model=list[ModelSummary])
async def list_models(
    request: Request, _: Viewer, after: Name | None = None, limit: Annotated[int | None, Query(ge=1)] = None
) -> Json:
    """List the models by name with a summary of each; with `limit`, `after` is the last name of the page before."""

    def listed(registry: Registry) -> list[Any]:
        names = registry.list_models(after=after or "", limit=limit)
        return [_summary(registry.get_model(name)).model_dump(mode="json") for name in names]

    return await by_registry(request, listed)


@router.get("/{model}", response_model=ModelSummary)
async def get_model(request: Request, model: Name, _: Viewer) -> Json:
    """Get the summary of one model: aliases, versions, traffic."""
    return await by_registry(request, lambda registry: _summary(registry.get_model(model)))


@router.get("/{model}/versions", response_model=list[ModelVersion])
async def list_versions(
    request: Request,
    model: Name,
    _: Viewer,
    before: Number | None = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
) -> Json:
    """List the versions that are not deleted, oldest first.

    before: only versions with a lower number; limit: the newest of those only, so that pages lead back in time.
    """

    def listed(registry: Registry) -> list[Any]:
        every = registry.list_versions(model)
        earlier = [each for each in every if before is None or each.version < before]
        return [each.model_dump(mode="json") for each in earlier[-limit if limit else 0 :]]

    return await by_registry(request, listed)


@router.get("/{model}/versions/{version}", response_model=ModelVersion)
async def get_version(request: Request, model: Name, version: Name, _: Viewer) -> Json:
    """Get a version by number or alias: signature, metrics, lineage, approvals, gates."""
    return await by_registry(request, lambda registry: registry.get_version(model, number_or_alias(version)))


@router.get("/{model}/versions/{version}/card", response_model=ModelCard)
async def get_card(request: Request, model: Name, version: Name, _: Viewer) -> Json:
    """Get the model card of a version, rendered from its record."""
    return await by_registry(
        request,
        lambda registry: ModelCard(card=registry.card(model, number_or_alias(version))),
    )


@router.get("/{model}/policy", response_model=ModelPolicy)
async def get_policy(request: Request, model: Name, _: Viewer) -> Json:
    """Get the model's policy: what a version needs before it may go live."""
    return await by_registry(request, lambda registry: registry.get_model(model).policy)


@router.put("/{model}/policy", response_model=ModelPolicy)
async def set_policy(request: Request, model: Name, body: ModelPolicy, _: Admin) -> Json:
    """Set what a version of the model needs before it may go live; a live version stays live."""

    def changed(registry: Registry) -> ModelPolicy:
        from functions.evaluation import EvaluationError, check_policy_gates  # late: it brings torch, seconds

        try:
            check_policy_gates(body)
        except (EvaluationError, ValidationError) as error:  # the latter for a name that no gate may have
            raise Problem(409, str(error), kind="invalid-policy") from error
        return registry.set_policy(model, body).policy

    return await by_registry(request, changed)


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
    _require_may_override(request, model, body.override)
    return await by_registry(
        request, lambda registry: registry.set_alias(model, alias, **_alias_arguments(body))
    )


@router.post("/{model}/promote", response_model=ModelVersion)
async def promote(request: Request, model: Name, body: AliasChange, _: Operator) -> Json:
    """Make a version the champion, and end the model's canaries, shadows and rules to a version, in one change.

    An override of the policy needs the role admin.
    """
    _require_may_override(request, model, body.override)
    return await by_registry(request, lambda registry: registry.promote(model, **_alias_arguments(body)))


@router.post("/{model}/aliases/{alias}/rollback", response_model=ModelVersion)
async def rollback(request: Request, model: Name, alias: Name, body: RollbackRequest, _: Operator) -> Json:
    """Point an alias back to its previous version; 409 if it is not at the expected one."""
    given = {"expected": body.expected} if "expected" in body.model_fields_set else {}
    return await by_registry(
        request, lambda registry: registry.rollback(model, alias, reason=body.reason, **given)
    )


@router.post("/{model}/versions/{version}/approve", response_model=ModelVersion)
async def approve(
    request: Request, model: Name, version: VersionNumber, body: ApprovalRequest, _: Approver
) -> Json:
    """Approve a version in the caller's name."""
    return await by_registry(
        request,
        lambda registry: registry.approve(model, version, comment=body.comment, accept_code=body.accept_code),
    )


@router.post("/{model}/versions/{version}/reject", response_model=ModelVersion)
async def reject(
    request: Request, model: Name, version: VersionNumber, body: ReviewComment, _: Approver
) -> Json:
    """Reject a version: no alias can point to it until it is approved."""
    return await by_registry(request, lambda registry: registry.reject(model, version, comment=body.comment))


@router.post("/{model}/versions/{version}/signatures", response_model=ModelVersion)
async def add_signature(
    request: Request, model: Name, version: VersionNumber, body: SignatureUpload, _: Operator
) -> Json:
    """Store a signature of a version's files; 409 if that key did not sign these files."""
    bundle = body.bundle.encode()
    return await by_registry(
        request, lambda registry: registry.add_signature(model, version, bundle, body.public_key)
    )


@router.get("/{model}/versions/{version}/signatures/{signer}")
async def get_signature(
    request: Request, model: Name, version: VersionNumber, signer: Name, _: Viewer
) -> Json:
    """Get a signature's bundle by the fingerprint of its key, for the caller to verify."""

    def found(registry: Registry) -> dict[str, str]:
        for mark in registry.get_version(model, version).signatures:
            if mark.signer == signer:
                return {"bundle": registry.signature(model, version, mark.sha256).decode()}
        raise NotFound(f"{model}@{version} has no signature of the key {signer}")

    return await by_registry(request, found)


@router.get("/{model}/traffic", response_model=Traffic)
async def get_traffic(request: Request, model: Name, _: Viewer) -> Json:
    """Get the traffic split in force."""
    return await by_registry(request, lambda registry: registry.traffic(model))


@router.put("/{model}/traffic", response_model=Traffic)
async def set_traffic(request: Request, model: Name, body: TrafficSplit, _: Operator) -> Json:
    """Split the traffic; the champion gets what the arms leave. An override of the policy needs the role admin."""
    _require_may_override(request, model, body.override)

    def changed(registry: Registry) -> Traffic:
        return registry.set_traffic(
            model,
            {name: (arm.version, arm.share) for name, arm in body.arms.items()},
            shadows=body.shadows,
            layer=body.layer,
            rules=body.rules,
            expected=body.expected,
            reason=body.reason,
            override=body.override,
        )

    return await by_registry(request, changed)


def number_or_alias(text: str) -> int | str:
    """Parse a version in a path: a number, or else an alias."""
    return int(text) if text.isascii() and text.isdigit() else text


def _require_may_override(request: Request, model: str, override: str) -> None:
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


def _summary(state: ModelState) -> ModelSummary:
    return ModelSummary(
        name=state.name,
        description=state.description,
        created_at=state.created_at,
        tags=dict(state.tags),
        aliases=dict(state.aliases),
        versions=[each.version for each in state.versions.values() if each.deleted_at is None],
        traffic=state.traffic,
    )
