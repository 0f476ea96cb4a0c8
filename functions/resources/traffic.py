"""Traffic of a model: the split, its arms' live figures, a preview, and layers with their holdouts."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from toque.functions.arguments import Model, Name, Number, Reason, Version
from toque.functions.live_counts import LiveFigures, read_figures
from toque.functions.resources.models import OVERRIDE, Override
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import LayerShare, Traffic, TrafficRule, Unavailable
from toque.registry.models.traffic import Move, moves


class ArmShare(BaseModel):
    """The version of an arm and its share of the traffic."""

    model_config = ConfigDict(extra="forbid")

    version: Version
    share: float = Field(ge=0, le=1, description="Share of the units that the arm has, from 0 to 1.")


class Preview(BaseModel):
    """Shares of the units that would change arms; staying: the share that would not."""

    entry: int
    staying: float
    moves: list[Move]


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


def _leave_the_champion_some(arms: dict[str, ArmShare]) -> dict[str, ArmShare]:
    shares = sum(arm.share for arm in arms.values())
    if shares > 1:
        raise ValueError(f"arms: shares sum to {shares:.4f}; the champion cannot have less than 0")
    return arms


Arms = Annotated[
    dict[Name, ArmShare],
    Field(
        json_schema_extra={"additionalProperties": False},
        description="Arms beside the champion by name, each with version and share; the champion has the rest.",
    ),
]
Holdout = Annotated[
    Name,
    Field(description="Name of the holdout; models that use the same name hold out the same units."),
]


@function(route="GET /models/{model}/traffic", role="viewer")
def get_traffic(model: Model) -> Traffic:
    """Get the traffic split in force."""
    return context().registry().traffic(model)


@function(route="PUT /models/{model}/traffic", admin_for=OVERRIDE)
def split_traffic(
    model: Model,
    arms: Arms = {},  # noqa: B006  # read only
    shadows: Annotated[
        list[Number], Field(description="Versions that see every request and answer none.")
    ] = [],  # noqa: B006  # read only
    layer: Annotated[
        LayerShare | None,
        Field(
            description="Part of a layer that the arms share, none of whose units is in another model's experiment."
        ),
    ] = None,
    rules: Annotated[
        list[TrafficRule],
        Field(
            description="Applied first: requests whose attributes meet a rule go to the version of that rule."
        ),
    ] = [],  # noqa: B006  # read only
    expected: Annotated[
        int | None,
        Field(
            ge=0,
            le=1_000_000_000,
            description="`entry` of the split that this was decided on; not checked unless given.",
        ),
    ] = None,
    reason: Reason = "",
    override: Override = "",
) -> Traffic:
    """Split the traffic; the champion gets what the arms leave. An override of the policy needs the role admin."""
    return (
        context()
        .registry()
        .set_traffic(
            model,
            {name: (arm.version, arm.share) for name, arm in arms.items()},
            shadows=shadows,
            layer=layer,
            rules=rules,
            expected=expected,
            reason=reason,
            override=override,
        )
    )


@function(route="GET /models/{model}/live", role="viewer")
def live_figures(
    model: Model,
    minutes: Annotated[
        int, Field(ge=2, le=120, description="Number of minutes whose requests are shown.")
    ] = 30,
) -> LiveFigures:
    """Get rates and latencies of the arms over the last minute, and requests of each of the last minutes.

    Raises: Unavailable without Redis, in which requests are counted.
    """
    used = context()
    if used.redis_url is None:
        raise Unavailable("requests are counted in Redis, which this platform has not; set TOQUE_REDIS_URL")
    return read_figures(used.redis_url, used.workspace, model, minutes=minutes)


@function(route="POST /models/{model}/traffic/preview", role="viewer")
def preview_traffic(
    model: Model,
    arms: Annotated[Arms, AfterValidator(_leave_the_champion_some)] = {},  # noqa: B006  # read only
) -> Preview:
    """Tell which share of the units would change arms if the arms were these; changes nothing."""
    now = context().registry().traffic(model)
    changes = moves(now, {name: (arm.version, arm.share) for name, arm in arms.items()})
    return Preview(entry=now.entry, staying=1.0 - sum(move.share for move in changes), moves=list(changes))


@function(route="GET /layers", role="viewer")
def list_layers() -> list[str]:
    """List the names of all layers."""
    return list(context().registry().list_layers())


@function(route="GET /layers/{layer}", role="viewer")
def get_layer(layer: Annotated[Name, Field(description="Name of the layer.")]) -> Layer:
    """Get the parts of a layer by model; a layer without claims is wholly free."""
    registry, parts = context().registry(), []
    for model, claim in sorted(registry.layer(layer).items()):
        rests_on = registry.get_model(model).split.layer
        used = rests_on is not None and rests_on.name == layer
        parts.append(ModelLayerPart(model=model, share=claim.share, buckets=list(claim.buckets), used=used))
    return Layer(name=layer, free=round(1 - sum(part.share for part in parts), 4), parts=parts)


@function(route="PUT /models/{model}/holdouts/{holdout}")
def begin_holdout(
    model: Model,
    holdout: Holdout,
    share: Annotated[
        float, Field(ge=0.0001, le=0.9999, description="Share of all units to hold out, above 0 and below 1.")
    ],
    reason: Reason = "",
) -> Traffic:
    """Hold units out of every experiment of the model until the holdout is ended; returns the changed split."""
    return context().registry().begin_holdout(model, holdout, share, reason=reason)


@function(route="DELETE /models/{model}/holdouts/{holdout}")
def end_holdout(model: Model, holdout: Holdout, reason: Reason = "") -> Traffic:
    """End a holdout, so that its units take part again; an absent holdout is no error."""
    return context().registry().end_holdout(model, holdout, reason=reason)
