"""Routes of a model's versions: list, card, review, signatures, what one lacks to go live, and which wait for an approver."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.routes.models import (
    Approver,
    Number,
    Operator,
    VersionNumber,
    Viewer,
    by_registry,
    number_or_alias,
)
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, Name
from toque.registry import (
    ModelState,
    ModelVersion,
    NotFound,
    Registry,
)

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])
reviews_router = APIRouter(route_class=GuardedRoute, tags=["models"])
_CHAMPION = "champion"
_AHEAD = 20  # models that are read at once


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


class Unmet(BaseModel):
    """Conditions of the model's policy that a version does not meet, and files with code that nobody accepted."""

    conditions: list[str]
    code_files: list[str]


class Waiting(BaseModel):
    """Version that meets its model's policy but for approvals. champion: the version that is live, if any."""

    model: str
    version: int
    champion: int | None
    author: str
    created_at: datetime
    unmet: list[str]


@reviews_router.get("/models/{model}/versions/{version}/unmet", response_model=Unmet)
async def get_unmet(request: Request, model: Name, version: VersionNumber, _: Viewer) -> Json:
    """Tell what a version lacks before it may become the champion."""
    registry = (await context_of(request)).registry()

    def told() -> Unmet:
        accepted = set(registry.accepted_code(model, version))
        code = registry.get_version(model, version).code_files
        return Unmet(
            conditions=list(registry.unmet(model, version)),
            code_files=[path for path in code if path not in accepted],
        )

    return Json((await services_of(request).run(told)).model_dump())


@reviews_router.get("/approvals", response_model=list[Waiting])
async def list_waiting(
    request: Request,
    _: Viewer,
    after: Annotated[str, Query(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}@[0-9]{1,10})?$")] = "",
    limit: Annotated[int | None, Query(ge=1, le=10_000)] = None,
) -> Json:
    """List the versions, newer than their model's champion, that lack nothing but approvals: by model, each model's newest first.

    With `limit`, `after` is the last one of the page before as `model@version`; a page reads the models that it needs.
    """
    registry = (await context_of(request)).registry()

    def listed() -> list[Waiting]:
        model, _, number = after.partition("@")
        rest = _waiting(registry, model, before=int(number)) if model else ()
        others = (each for name in _models(registry, model) for each in _waiting(registry, name))
        return list(islice(chain(rest, others), limit))

    return Json([each.model_dump(mode="json") for each in await services_of(request).run(listed)])


def _models(registry: Registry, after: str) -> Iterator[str]:
    """Iterate over the names of the models after one, reading a few ahead."""
    while names := registry.list_models(after=after, limit=_AHEAD):
        yield from names
        after = names[-1]


def _waiting(registry: Registry, name: str, *, before: int | None = None) -> Iterator[Waiting]:
    state: ModelState = registry.follow(name).refresh()
    champion = state.aliases.get(_CHAMPION)
    if _CHAMPION not in state.policy.guarded:
        return
    unapproved = state.policy.model_copy(update={"approvals": 0})
    for number in sorted(state.versions, reverse=True):
        if number <= (champion or 0):
            return
        version = state.versions[number]
        if version.status != "READY" or (before is not None and number >= before):
            continue
        unmet = version.missing(state.policy)
        if not unmet:
            continue
        # Approvals under this policy stand although its copy has another digest: only gates and signatures are left.
        if not version.missing(unapproved):
            yield Waiting(
                model=name,
                version=number,
                champion=champion,
                author=version.author,
                created_at=version.created_at,
                unmet=list(unmet),
            )
