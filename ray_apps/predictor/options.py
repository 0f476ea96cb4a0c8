"""How a predictor is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from functions.prediction_log import default_wal_root
from functions.runtime.context import context_of

__all__ = ["PredictorOptions"]


class PredictorOptions(BaseModel):
    """Where a predictor finds its memory, and its bounds.

    store_url, redis_url: the platform's store and Redis (None: no requests by key, no log). replay: the platform
    runs on the replay clock. authentication: False lets everybody in. log: whether answers are logged.
    wal_root: folder of the write-ahead files (default: beside the store). log_limit_bytes: their bound for each
    replica. poll_s: how often the traffic policy is read. num_replicas, num_cpus, max_ongoing_requests,
    max_queued_requests: Serve's; beyond both a caller is told to come again. max_body_bytes: of one request.
    shadow_limit: how many requests may wait for shadows before they are dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    redis_url: str | None = None
    replay: bool = False
    authentication: bool = True
    log: bool = True
    wal_root: Path | None = None
    log_limit_bytes: int = Field(default=1 << 30, ge=1 << 16)
    poll_s: float = Field(default=0.25, gt=0)
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0.5, ge=0)
    max_ongoing_requests: int = Field(default=256, ge=1)
    max_queued_requests: int = Field(default=1_024, ge=-1)
    max_body_bytes: int = Field(default=64 << 20, ge=1 << 10)
    shadow_limit: int = Field(default=256, ge=1)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **changes: Any) -> PredictorOptions:
        """Options of the platform that `TOQUE_STORE`, `TOQUE_REDIS_URL` and `TOQUE_CLOCK` name.

        changes: fields that differ. Raises: ValueError if the environment contradicts itself.
        """
        here = context_of(environment)
        found = {
            "store_url": here.store_url,
            "redis_url": here.redis_url,
            "replay": environment.get("TOQUE_CLOCK") == "replay",
            "wal_root": environment.get("TOQUE_WAL") or None,
        }
        return cls.model_validate(found | changes)

    @property
    def wal(self) -> Path:
        """The folder of the write-ahead files."""
        return self.wal_root if self.wal_root is not None else default_wal_root(self.store_url)
