"""Routes of a model's versions: list, card, approval and rejection, signatures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.routes.models.registry_calls import (
    Approver,
    Number,
    Operator,
    VersionNumber,
    Viewer,
    by_registry,
    number_or_alias,
)
from toque.ray_apps.gateway.wire import Json, Name
from toque.registry import (
    ModelVersion,
    NotFound,
    Registry,
)

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])


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


class SignatureUpload(BaseModel):
    """A signature made elsewhere (a bundle of the OpenSSF model-signing format), and the key it is checked with."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    public_key: str


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
