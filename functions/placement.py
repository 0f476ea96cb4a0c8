"""Placement of a model: served in replicas of its own, each version in its own, or in the shared pool."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Placement(BaseModel):
    """Placement of a model on replicas.

    pool: in the shared replicas of the pool, loaded on the first request; the other fields do not apply then.
    min_replicas, max_replicas: of its own, scaled by the requests in flight; with min_replicas=0 an idle model has no
    replica, and the first request waits for one to start. target_latency_ms: scale up, too, until 95 % of the answers
    take less.
    dedicated: each live version in that many replicas of its own, each with `num_cpus` and `num_gpus` to itself; one more
    replica is the entry to all versions and holds no model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: bool = False
    dedicated: bool = False
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_latency_ms: float | None = Field(default=None, gt=0)
    num_cpus: float = Field(default=0.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}; raise max_replicas"
            )
        if self.target_latency_ms is not None and self.min_replicas == self.max_replicas:
            raise ValueError(
                f"target_latency_ms={self.target_latency_ms:g} for always {self.max_replicas} replicas: nothing is scaled; "
                "raise max_replicas, or leave it out"
            )
        if self.pool and self.dedicated:
            raise ValueError("pool=True and dedicated=True exclude each other; leave one of them out")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value and not self.dedicated:
                raise ValueError(
                    f"{name}={value:g} is for each replica of a dedicated version; add dedicated=True or leave it out"
                )
        return self
