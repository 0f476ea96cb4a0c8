"""Calls of the registry in the caller's name, and the roles and fields that routes of models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Path, Request
from pydantic import BaseModel, ConfigDict, Field

from toque.ray_apps.admission import NotAdmitted, admitted_of, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import (
    Principal,
    Registry,
    Role,
)

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
