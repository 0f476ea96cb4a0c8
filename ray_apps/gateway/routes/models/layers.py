"""Routes of experiment layers and holdouts: which model experiments on which units."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.routes.models.registry_calls import ChangeRequest, Operator, Viewer, by_registry
from toque.ray_apps.gateway.wire import Json, Name
from toque.registry import Registry, Traffic

router = APIRouter(route_class=GuardedRoute, tags=["models"])


class ModelLayerPart(BaseModel):
    """A model's part of a layer.

    used: its traffic is split in this layer now; else the part is only claimed, and may be taken back.
    """

    model: str
    share: float
    buckets: list[tuple[int, int]]
    used: bool


class Layer(BaseModel):
    """Parts of a layer by model, and the share that is free."""

    name: str
    free: float
    parts: list[ModelLayerPart]


class HoldoutRequest(ChangeRequest):
    """Share of units to hold out, between 0 and 1."""

    share: float = Field(ge=0.0001, le=0.9999)


@router.get("/layers", response_model=list[str])
async def list_layers(request: Request, _: Viewer) -> Json:
    """List the names of all layers."""
    return await by_registry(request, lambda registry: registry.list_layers())


@router.get("/layers/{layer}", response_model=Layer)
async def get_layer(request: Request, layer: Name, _: Viewer) -> Json:
    """Get the parts of a layer by model; a layer without claims is wholly free."""
    return await by_registry(request, lambda registry: _layer(registry, layer))


@router.put("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def begin_holdout(
    request: Request, model: Name, holdout: Name, body: HoldoutRequest, _: Operator
) -> Json:
    """Hold units out of every experiment of the model until the holdout is ended; returns the changed split."""

    def begun(registry: Registry) -> Any:
        return registry.begin_holdout(model, holdout, body.share, reason=body.reason)

    return await by_registry(request, begun)


@router.delete("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def end_holdout(
    request: Request,
    model: Name,
    holdout: Name,
    _: Operator,
    reason: Annotated[str, Query(max_length=2000)] = "",
) -> Json:
    """End a holdout, so that its units take part again; an absent holdout is no error."""
    return await by_registry(request, lambda registry: registry.end_holdout(model, holdout, reason=reason))


def _layer(registry: Registry, name: str) -> Layer:
    parts = []
    for model, claim in sorted(registry.layer(name).items()):
        rests_on = registry.get_model(model).split.layer
        used = rests_on is not None and rests_on.name == name
        parts.append(ModelLayerPart(model=model, share=claim.share, buckets=list(claim.buckets), used=used))
    return Layer(name=name, free=round(1 - sum(part.share for part in parts), 4), parts=parts)
