"""A training's bill, as it is told to people: known without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Cost(BaseModel):
    """A training's bill.

    gpu_hours: cards held x time; energy_kwh: of the cards, None where they do not tell it; money: None without prices.
    What a worker used that was killed is not in it: it could not say.
    """

    model_config = ConfigDict(frozen=True)

    cpu_hours: float
    gpu_hours: float
    energy_kwh: float | None = None
    money: float | None = None
    currency: str | None = None
