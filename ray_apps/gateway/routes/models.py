"""Routes of models that are not functions: the list, one with what serves it, and the policy with its ETag."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ValidationError

from toque.functions.arguments import Name
from toque.ray_apps.admission import GuardedRoute, admitted_of
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Admin, Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import (
    ModelPolicy,
    ModelState,
    Registry,
    Traffic,
)

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])


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
    context = await context_of(request)
    policy = await services_of(request).run(lambda: call(context.registry()))
    return Json(policy.model_dump(mode="json"), headers={"ETag": f'"{policy.digest}"'})


async def by_registry(request: Request, work: Callable[[Registry], Any]) -> Json:
    """Run `work` on the registry of the request's workspace in the caller's name; returns its result as JSON."""
    context = await context_of(request)

    def done() -> Any:
        result = work(context.registry())
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else result

    return Json(await services_of(request).run(done))


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
