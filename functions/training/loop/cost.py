"""What a training cost: processor and card hours of all its workers, energy where the card tells it, money by given prices."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from functions.runtime.receipt import Prices
from functions.training.loop.parallel import World
from functions.training.trained import Cost
from registry import Run
from registry.runs.environment import Usage

_HOUR_S, _KWH_J, _MILLI = 3600.0, 3.6e6, 1e-3


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor and card seconds; joules of the cards, NaN where a card does not tell."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    energy_j: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu_s + other.cpu_s, self.gpu_s + other.gpu_s, self.energy_j + other.energy_j)

    def over(self, world: World) -> Spent:
        """What all workers spent together; each has to ask."""
        told = torch.tensor([self.cpu_s, self.gpu_s, self.energy_j], dtype=torch.float64).to(world.device)
        return Spent(*world.total(told).tolist())

    def cost(self, prices: Prices | None) -> Cost:
        """The bill at `prices`."""
        known = self.gpu_s > 0 and math.isfinite(self.energy_j)
        energy_j = self.energy_j if known else None
        return Cost(
            cpu_hours=self.cpu_s / _HOUR_S,
            gpu_hours=self.gpu_s / _HOUR_S,
            energy_kwh=None if energy_j is None else energy_j / _KWH_J,
            money=prices.money(cpu_s=self.cpu_s, gpu_s=self.gpu_s, energy_j=energy_j) if prices else None,
            currency=prices.currency if prices else None,
        )


class Meter:
    """Measures this process, and the card it computes on, from now."""

    def __init__(self, device: str, gpus: float) -> None:
        self._gpus, self._joules = gpus, _joules(device)
        self._usage, self._energy_j = Usage.now(), self._joules()

    def read(self) -> Spent:
        """What was spent so far."""
        used = self._usage.since()
        energy_j = self._joules() - self._energy_j
        return Spent(used["cpu_s"], used["wall_s"] * self._gpus, energy_j)

    def lap(self) -> Spent:
        """What was spent since the last lap."""
        spent = self.read()
        self._usage, self._energy_j = Usage.now(), self._joules()
        return spent


class Tally:
    """A bill that is being written. others: what was spent by other processes than this one."""

    def __init__(self, meter: Meter, prices: Prices | None) -> None:
        self.others = Spent()
        self._meter, self._prices = meter, prices

    def cost(self) -> Cost:
        """What it comes to by now."""
        return (self._meter.read() + self.others).cost(self._prices)


@contextmanager
def billed(run: Run, prices: Prices | None, *, device: str = "cpu", gpus: float = 0.0) -> Iterator[Tally]:
    """Measure what is done within, and log its cost to `run`, however it ends.

    device, gpus: what this process itself computes on.
    """
    bill = Tally(Meter(device, gpus), prices)
    try:
        yield bill
    finally:
        log_cost(run, bill.cost())


def log_cost(run: Run, cost: Cost) -> None:
    """Log a bill to a run: metrics for what is known, and the currency as a tag."""
    told = cost.model_dump(exclude={"currency"}, exclude_none=True)
    run.log_metrics(told)
    if cost.currency is not None:
        run.set_tags({"currency": cost.currency})


def _joules(device: str) -> Callable[[], float]:
    """A reading of the joules that the card `device` has used so far: always NaN if it does not tell, 0 if it is none."""
    if device == "cpu":
        return lambda: 0.0
    try:
        nvml = importlib.import_module("pynvml")  # NVIDIA's own; present where somebody installed it
    except ImportError:
        return lambda: math.nan
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLI
        except nvml.NVMLError_NotSupported:
            return math.nan

    return read
