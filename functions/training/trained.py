"""What a training reports when it has ended, with its cost: known without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from toque.registry.models import Signature


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


class Trained(BaseModel):
    """Result of a training: what the trainer found, completed with run, version and cost by whoever called it.

    A trainer may return `Trained()`: what it leaves out is measured on the rows held out, from the files that it wrote.
    metrics: on the rows held out; best_epoch: the epoch or round that was kept, from 0; rows: learnt from and held out;
    signature: of the files (None: the columns in, and the outcome's answer out). run_id, model, version (None if it was not to
    be registered), seconds from start to registered, cost of this process and all workers: set by the platform.
    stopped: why a sweep ended this trial early, else empty.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str = ""
    model: str = ""
    version: int | None = None
    metrics: dict[str, float] = {}
    best_epoch: int = 0
    rows: int = 0
    seconds: float = 0.0
    cost: Cost | None = None
    signature: Signature | None = None
    stopped: str = ""
