"""Routes of reviews: what a version lacks before it may go live, and which versions wait for an approver."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel

from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, Name
from toque.registry import ModelState, Principal, Registry, Role

router = APIRouter(route_class=GuardedRoute, tags=["models"])

Viewer = Annotated[Principal, allowed(Role.viewer)]
_CHAMPION = "champion"
_AHEAD = 20  # models that are read at once


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


@router.get("/models/{model}/versions/{version}/unmet", response_model=Unmet)
async def get_unmet(
    request: Request, model: Name, version: Annotated[int, Path(ge=1, le=2**31)], _: Viewer
) -> Json:
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


@router.get("/approvals", response_model=list[Waiting])
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
