"""Cards of a cluster's nodes: whole ones or slices (NVIDIA's MIG), and what their driver tells of them.

A node whose cards are cut has slices instead of cards, each a GPU of Ray's. The type of its GPUs names the card and the profile, as
in `H100-1g.10gb`. Quotas, budgets and receipts count a slice as the part of a card that it computes with; Ray counts it as one
GPU. The driver's library, NVML, comes with the driver; its binding comes with Ray. Where there is no driver, or it does not tell,
the answer is None, never 0.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SLICED = "toque/slices"
"""Label of a node whose GPUs are slices, so that who asks for any card gets a whole one."""
SLICED_VALUE = "yes"
_PROFILE = re.compile(r"(?:^|[-_])(?P<units>[1-7])g\.\d+gb(?:\.[a-z]+)*$")
_UNITS = 7  # of computing, in a card; the few with four (A30) count as if they had seven
_JOULE = 1e-3  # in the driver's millijoules
_SLICE_NAME = re.compile(r"MIG (\S+)$")
Joules = Callable[[], float | None]
"""Reader of the joules that cards have used since their driver was loaded; None if one of them does not tell."""


def share_of(card: str | None) -> float:
    """Part of a card that one GPU of this type is: 1 of a whole card, or of any; 1/7 of `H100-1g.10gb`."""
    found = None if card is None else _PROFILE.search(card)
    return 1.0 if found is None else int(found["units"]) / _UNITS


def is_slice(card: str | None) -> bool:
    """Whether a type of GPUs is a slice of a card."""
    return card is not None and _PROFILE.search(card) is not None


@dataclass(frozen=True, slots=True)
class Node:
    """Node by what it has in total.

    name: address of its raylet, as records of runs have it; gpus: in cards, of which a slice is a part; card: type of its GPUs,
    None if it is not known; coming: it is not there, and the autoscaler may start it.
    """

    name: str
    gpus: float
    card: str | None = None
    cpus: float = math.inf
    memory_bytes: float = math.inf
    coming: bool = False

    @property
    def units(self) -> tuple[float, ...]:
        """Part of a card that each GPU of the node is: 1 of a card, 1/7 of a small slice."""
        each = share_of(self.card)
        return (each,) * round(self.gpus / each)


@dataclass(frozen=True, slots=True)
class Device:
    """What CUDA takes for a card: a card of this machine, or a slice of one, which has a profile as in `1g.10gb`."""

    uuid: str
    profile: str | None = None


def visible_cards() -> tuple[str, ...]:
    """List the cards that this process may use, by number or UUID, as Ray has set them; empty where nobody has."""
    return tuple(name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)


def energy_reader(names: Sequence[str], *, share: float = 1.0) -> Joules:
    """Make a reader of the energy of cards, by number or UUID, with or without its prefix.

    share: of each that is held, where it is a fraction. The driver counts a card as a whole: a slice is charged by its part of the
    computing units, and a fraction by its share, whatever the neighbours do.
    """
    nvml = _library()
    if nvml is None or not names:
        return lambda: None
    try:
        metered = [_metered(nvml, name) for name in names]
    except nvml.NVMLError:
        return lambda: None

    def read() -> float | None:
        try:
            used = [nvml.nvmlDeviceGetTotalEnergyConsumption(card) * part for card, part in metered]
        except nvml.NVMLError:
            return None
        return float(sum(used)) * _JOULE * share

    return read


def devices() -> list[Device]:
    """List the cards of this machine, and of those that are cut their slices instead; empty without a driver."""
    nvml = _library()
    if nvml is None:
        return []
    found: list[Device] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        card = nvml.nvmlDeviceGetHandleByIndex(number)
        if _is_cut(nvml, card):
            for each in _slices(nvml, card):
                profile = _SLICE_NAME.search(_text(nvml.nvmlDeviceGetName(each)))
                found.append(
                    Device(_text(nvml.nvmlDeviceGetUUID(each)), profile[1] if profile else "unknown")
                )
        else:
            found.append(Device(_text(nvml.nvmlDeviceGetUUID(card))))
    return found


def _library() -> Any:
    """Load NVML; None where no driver is."""
    from toque.clusters.ray_private import pynvml as nvml  # late: it loads Ray

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _metered(nvml: Any, name: str) -> tuple[Any, float]:
    """Find the card that has the counter for a name, and the part of it that is meant."""
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name)), 1.0
    handle = _by_uuid(nvml, name)
    if not nvml.nvmlDeviceIsMigDeviceHandle(handle):
        return handle, 1.0
    card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    units = nvml.nvmlDeviceGetAttributes(handle).gpuInstanceSliceCount
    return card, units / nvml.nvmlDeviceGetMaxMigDeviceCount(card)


def _by_uuid(nvml: Any, name: str) -> Any:
    names = [name] if name.startswith(("GPU-", "MIG-")) else [f"GPU-{name}", f"MIG-{name}"]
    for each in names[:-1]:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(each)
        except nvml.NVMLError:
            continue
    return nvml.nvmlDeviceGetHandleByUUID(names[-1])


def _is_cut(nvml: Any, card: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(card)[0])
    except nvml.NVMLError:  # a card that cannot be
        return False


def _slices(nvml: Any, card: Any) -> Iterator[Any]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except nvml.NVMLError:  # no slice has this number
            continue


def _text(told: str | bytes) -> str:
    return told.decode() if isinstance(told, bytes) else told
