"""Layers and holdouts by HTTP: who shares units out, and who is left out of all of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ray_apps.gateway.routes.models import Change, Operator, Viewer, by_registry
from ray_apps.gateway.wire import Json, Name
from registry import Registry, Traffic

router = APIRouter(tags=["models"])


class Part(BaseModel):
    """A model's part of a layer. used: its traffic is split in it now; else it was claimed, and may be taken back."""

    model: str
    share: float
    buckets: list[tuple[int, int]]
    used: bool


class Layer(BaseModel):
    """Who has which part of a layer, and what share of it is free."""

    name: str
    free: float
    parts: list[Part]


class HoldingOut(Change):
    """How many units are held out, 0 to 1."""

    share: float = Field(ge=0.0001, le=0.9999)


@router.get("/layers", response_model=list[str])
async def list_layers(request: Request, principal: Viewer) -> Json:
    """Names of all layers."""
    return await by_registry(request, principal, lambda registry: registry.list_layers())


@router.get("/layers/{layer}", response_model=Layer)
async def get_layer(request: Request, layer: Name, principal: Viewer) -> Json:
    """Who has which part of a layer; one that nobody asked for is free."""
    return await by_registry(request, principal, lambda registry: _layer(registry, layer))


@router.put("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def begin_holdout(
    request: Request, model: Name, holdout: Name, body: HoldingOut, principal: Operator
) -> Json:
    """Hold units out of every experiment of the model, until it is ended; the split, with it."""

    def begun(registry: Registry) -> Any:
        return registry.begin_holdout(model, holdout, body.share, reason=body.reason)

    return await by_registry(request, principal, begun)


@router.delete("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def end_holdout(
    request: Request,
    model: Name,
    holdout: Name,
    principal: Operator,
    reason: Annotated[str, Query(max_length=2000)] = "",
) -> Json:
    """Let held-out units take part again; an absent one is fine."""
    return await by_registry(
        request, principal, lambda registry: registry.end_holdout(model, holdout, reason=reason)
    )


def _layer(registry: Registry, name: str) -> Layer:
    parts = []
    for model, claim in sorted(registry.layer(name).items()):
        rests_on = registry.get_model(model).split.layer
        used = rests_on is not None and rests_on.name == name
        parts.append(Part(model=model, share=claim.share, buckets=list(claim.buckets), used=used))
    return Layer(name=name, free=round(1 - sum(part.share for part in parts), 4), parts=parts)
