"""What a training reports when it has ended, with its cost: known without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
    """Result of a whole training: its run, the registered version and its metrics.

    version: None if it was not to be registered; metrics: on the rows held out; seconds: from start to registered; cost: of
    this process and all workers.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    model: str
    version: int | None
    metrics: dict[str, float]
    best_epoch: int
    rows: int
    seconds: float
    cost: Cost | None = None
