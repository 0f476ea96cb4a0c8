"""Slices of this machine's cards (MIG), as its node offers them: each is a GPU of Ray's, of a type that names card and profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from toque.functions.runtime.cards.driver import Device, devices
from toque.functions.runtime.cards.slices import SLICED, SLICED_VALUE
from toque.functions.runtime.run.cluster import CARD
from toque.ray_apps.deployment.errors import DeploymentError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class CardSlices:
    """Labels and variables of a node that has slices for cards, and options of `ray start`; empty for one with whole cards, or without any."""

    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)


WHOLE_CARDS = CardSlices()


def card_slices(visible: str | None) -> CardSlices:
    """Find the slices that a node of this machine offers.

    visible: cards and slices that it may use, as CUDA_VISIBLE_DEVICES has them; None: all.
    Raises: DeploymentError if they are of several kinds, between which Ray could not choose.
    """
    names = None if visible is None else set(visible.split(","))
    offered = [each for each in devices() if names is None or each.uuid in names]
    if not any(each.profile for each in offered):
        return WHOLE_CARDS
    kinds = {_kind(each) for each in offered}
    if len(kinds) > 1:
        raise DeploymentError(
            f"this machine's cards are cut into {', '.join(sorted(kinds))}: name those of one kind in {VISIBLE} by UUID, as "
            "`nvidia-smi -L` lists them, and start another node for the others"
        )
    card = f"{NvidiaGPUAcceleratorManager.get_current_node_accelerator_type() or 'GPU'}-{kinds.pop()}"
    return CardSlices(
        {CARD: card, SLICED: SLICED_VALUE},
        {VISIBLE: ",".join(each.uuid for each in offered)},
        {"num-gpus": len(offered)},  # Ray itself would count the cards
    )


def _kind(device: Device) -> str:
    return device.profile or "whole cards"
