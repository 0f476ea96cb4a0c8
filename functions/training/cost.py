"""Metering of what a training costs: processor and GPU hours of all workers, energy if reported, and money."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from toque.functions.runtime.cards import energy_reader
from toque.functions.runtime.receipt import Prices
from toque.registry import Run
from toque.registry.runs.run import Usage

if TYPE_CHECKING:
    from torch import Tensor

_HOUR_S, _KWH_J = 3600.0, 3.6e6


class Cost(BaseModel):
    """Cost of a whole training: processor and GPU hours, energy and money.

    gpu_hours: GPUs held x time; energy_kwh: of the GPUs, None where they do not report it; money: None without prices.
    What a worker used that was killed is missing: it could not report it.
    """

    model_config = ConfigDict(frozen=True)

    cpu_hours: float
    gpu_hours: float
    energy_kwh: float | None = None
    money: float | None = None
    currency: str | None = None


class Group(Protocol):
    """Workers that add up what each of them has."""

    @property
    def device(self) -> str:
        """Device of this worker's tensors."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all workers."""


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """Processor and GPU seconds that were used, and joules of the GPUs: NaN where a GPU does not report them."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    energy_j: float = 0.0

    def __add__(self, other: ResourceUse) -> ResourceUse:
        return ResourceUse(self.cpu_s + other.cpu_s, self.gpu_s + other.gpu_s, self.energy_j + other.energy_j)

    def over(self, group: Group) -> ResourceUse:
        """Sum over all workers of the group; every worker has to call it."""
        import torch  # late: trainers of other libraries do without it

        own = torch.tensor([self.cpu_s, self.gpu_s, self.energy_j], dtype=torch.float64).to(group.device)
        return ResourceUse(*group.all_reduce_sum(own).tolist())

    @property
    def known_energy_j(self) -> float | None:
        """Joules of the GPUs; None without any, or if one does not tell."""
        return self.energy_j if self.gpu_s > 0 and math.isfinite(self.energy_j) else None

    def cost(self, prices: Prices | None) -> Cost:
        """Cost of this use at `prices`; no money without them."""
        energy_j = self.known_energy_j
        return Cost(
            cpu_hours=self.cpu_s / _HOUR_S,
            gpu_hours=self.gpu_s / _HOUR_S,
            energy_kwh=None if energy_j is None else energy_j / _KWH_J,
            money=prices.money(cpu_s=self.cpu_s, gpu_s=self.gpu_s, energy_j=energy_j) if prices else None,
            currency=prices.currency if prices else None,
        )


class ResourceMeter:
    """Measures what this process, and the GPU it computes on, use from now on.

    gpus: as Ray counts them, slices of cards too; card_share: part of a card that one of them is.
    """

    def __init__(self, device: str, gpus: float, card_share: float = 1.0) -> None:
        self._cards, self._joules = gpus * card_share, _joules(device, gpus)
        self._usage, self._energy_j = Usage.now(), self._joules()

    def read(self) -> ResourceUse:
        """Use since the meter was made, or since the last lap."""
        used = self._usage.since()
        energy_j = self._joules() - self._energy_j
        return ResourceUse(used["cpu_s"], used["wall_s"] * self._cards, energy_j)

    def lap(self) -> ResourceUse:
        """Use since the last lap; begins the next one."""
        used = self.read()
        self._usage, self._energy_j = Usage.now(), self._joules()
        return used


class CostMeter:
    """Running cost of a training. other_processes: use of the workers that are not this process."""

    def __init__(self, meter: ResourceMeter, prices: Prices | None) -> None:
        self.other_processes = ResourceUse()
        self._meter, self._prices = meter, prices

    def add(self, use: ResourceUse) -> None:
        """Count what processes of workers used."""
        self.other_processes += use

    def cost(self) -> Cost:
        """Cost so far, of this process and the others."""
        return (self._meter.read() + self.other_processes).cost(self._prices)


@contextmanager
def metered(
    run: Run, prices: Prices | None, *, device: str = "cpu", gpus: float = 0.0, card_share: float = 1.0
) -> Iterator[CostMeter]:
    """Measure the work done within, and log its cost to `run`, however the work ends.

    device, gpus, card_share: what this process itself computes on, as of `ResourceMeter`.
    """
    own = ResourceMeter(device, gpus, card_share)
    meter = CostMeter(own, prices)
    try:
        yield meter
    finally:
        log_cost(run, meter.cost())


def log_cost(run: Run, cost: Cost) -> None:
    """Log a cost to a run: its known figures as metrics, and the currency as a tag."""
    run.log_metrics(cost.model_dump(exclude={"currency"}, exclude_none=True))
    if cost.currency is not None:
        run.set_tags({"currency": cost.currency})


def _joules(device: str, gpus: float) -> Callable[[], float]:
    """Make a reader of the joules of `gpus` of GPU `device`: NaN if the driver does not tell, 0 for the CPU."""
    if device == "cpu":
        return lambda: 0.0
    import torch  # late, as above

    if not torch.cuda.is_available():  # the training refuses it, and says so
        return lambda: math.nan
    read = energy_reader([str(torch.cuda.get_device_properties(device).uuid)], share=min(1.0, gpus))
    return lambda: math.nan if (found := read()) is None else found
