"""Service level objectives of a load: what must hold under it, and the verdict on measurements; pure."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Load(BaseModel):
    """Load of a run: how many clients send how often, for how long after a warm-up that is not counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(default=8, ge=1)
    requests_per_user_per_s: float = Field(default=5.0, gt=0)
    duration_s: int = Field(default=30, ge=1)
    warm_up_s: int = Field(default=5, ge=0)
    rows_per_request: int = Field(default=1, ge=1)


class Objectives(BaseModel):
    """Objectives of a run; one that is left out is not checked. At least one request is always needed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50_ms: float | None = Field(default=None, gt=0)
    p99_ms: float | None = Field(default=None, gt=0)
    error_share: float | None = Field(default=None, ge=0, le=1)
    requests_per_s: float | None = Field(default=None, gt=0)


class Slo(BaseModel):
    """Service level: a load and its objectives, as `slo.toml` holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: Load = Load()
    objectives: Objectives = Objectives()

    @classmethod
    def read(cls, path: Path) -> "Slo":
        """Read objectives from a TOML file. Raises: pydantic.ValidationError naming the field, FileNotFoundError."""
        return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one load run. latencies: count of requests by rounded milliseconds."""

    requests: int
    failures: int
    seconds: float
    latencies: Mapping[float, int]

    @classmethod
    def of(cls, entries: list[Mapping[str, Any]], *, name: str) -> "Measured":
        """Take the entry `name` out of locust's statistics; without one nothing was requested."""
        entry = next((entry for entry in entries if entry["name"] == name), None)
        if entry is None:
            return cls(0, 0, 0.0, {})
        seconds = (entry["last_request_timestamp"] or entry["start_time"]) - entry["start_time"]
        latencies = {float(ms): count for ms, count in entry["response_times"].items()}
        return cls(entry["num_requests"], entry["num_failures"], seconds, latencies)

    def latency_ms(self, share: float) -> float:
        """Latency that a share of the requests did not exceed; NaN without a request."""
        wanted, seen = share * sum(self.latencies.values()), 0
        for ms in sorted(self.latencies):
            seen += self.latencies[ms]
            if seen >= wanted:
                return ms
        return math.nan


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict on one objective: what was measured, and whether it held."""

    objective: str
    limit: float
    measured: float
    held: bool


def judge(measured: Measured, objectives: Objectives) -> list[Finding]:
    """Compare the measurements with every objective; without traffic none holds, since NaN never does."""
    share = measured.failures / measured.requests if measured.requests else math.nan
    rate = measured.requests / measured.seconds if measured.seconds else math.nan
    values = {
        "p50_ms": (objectives.p50_ms, measured.latency_ms(0.5)),
        "p99_ms": (objectives.p99_ms, measured.latency_ms(0.99)),
        "error_share": (objectives.error_share, share),
    }
    findings = [
        Finding(name, limit, value, value <= limit)
        for name, (limit, value) in values.items()
        if limit is not None
    ]
    if objectives.requests_per_s is not None:
        findings.append(
            Finding("requests_per_s", objectives.requests_per_s, rate, rate >= objectives.requests_per_s)
        )
    return [Finding("requests", 1, measured.requests, measured.requests >= 1), *findings]
