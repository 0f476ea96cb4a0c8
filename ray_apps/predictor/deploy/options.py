"""Options of the predictor's deployments: a model's, a dedicated version's, the pool's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toque.functions.model_formats.sandbox import SandboxLimits
from toque.functions.prediction_log import LogMode, default_wal_root, log_mode_of
from toque.functions.runtime.context import context_of
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.predictor.deploy.scaling import Policy
from toque.ray_apps.predictor.http.body import MAX_HELD_BYTES
from toque.registry.access import DEFAULT_WORKSPACE, check_workspace, workspace_url

__all__ = ["DedicatedOptions", "PoolOptions", "PredictorOptions"]

POLICY = f"{Policy.__module__}:{Policy.__name__}"
"""Import path of the autoscaling policy, which Serve sends to its controller."""
_MEMORY, _LEAST_MEMORY = "TOQUE_POOL_MEMORY_GB", 1 << 20


class DedicatedOptions(BaseModel):
    """Options of the deployment that each live version has to itself.

    min_replicas, max_replicas: bounds of its autoscaling, as a predictor's; a minimum of 0 stops the last replica when
    idle. target_latency_ms: as a predictor's, of the version's own answers. num_cpus, num_gpus: reserved for each
    replica. start_timeout_s: for a version to answer its example, and for a request to wait for a replica.
    linger_s: how long a deployment stays once no endpoint holds its version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_latency_ms: float | None = Field(default=None, gt=0)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    start_timeout_s: float = Field(default=300.0, gt=0)
    linger_s: float = Field(default=60.0, ge=10)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_bounds(self.min_replicas, self.max_replicas)
        if self.target_latency_ms is not None and self.min_replicas == self.max_replicas:
            raise ValueError(
                f"target_latency_ms={self.target_latency_ms:g} for always {self.max_replicas} replicas: "
                "raise max_replicas, or leave it out"
            )
        return self


class PredictorOptions(BaseModel):
    """Options of a predictor: the platform it belongs to, its bounds and its scale.

    store_url, redis_url: the platform's store and Redis (None: no requests by key, no log). workspace: whose models,
    features and log they are; access is the platform's. replay: the platform runs on the replay clock.
    authentication: False admits every request. oidc: issuer whose tokens are accepted, too. log: whether answers are
    logged. log_mode: where a record is before its answer leaves, by default as the variable TOQUE_LOG_MODE says. pseudonymise: fields of the log ("unit", "entities") that carry keyed hashes instead of values; their key is
    the replica's secret TOQUE_PSEUDONYM_KEY. wal_root: folder of the write-ahead files of all workspaces (default: beside the store). log_limit_bytes:
    their bound for each
    replica. poll_s: how often the traffic policy is read while Redis
    does not announce its changes. num_replicas, num_cpus, max_ongoing_requests,
    max_queued_requests: Serve's; requests beyond both bounds are refused with 429. max_body_bytes: of one request;
    max_held_bytes: of all large bodies that a replica holds at once, beyond which requests are refused with 429.
    shadow_limit: how many requests may wait for shadows before they are dropped.

    on_serve_nodes: replicas run only where the resource `serve` is; two or more of a fixed number never all on one of
    several such nodes. Versions that need a GPU run where one is.

    max_replicas: overrides num_replicas and scales the replicas so that each has `target_in_flight` requests, down to
    `min_replicas`. With a minimum of 0 the last replica stops after `idle_s` without requests, and the next
    request waits for one to start. Serve counts the requests of a scaled model, which costs each 0.1 ms.
    target_latency_ms: scale up, too, until 95 % of the answers take less than this, but never to more replicas than
    requests in flight; the larger number wins.

    metrics: whether requests are counted for Prometheus. sandbox: limits of the process that loads a version's files before a replica does.
    dedicated: versions have deployments of their own, and the replicas here are only the model's endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    redis_url: str | None = None
    workspace: str = DEFAULT_WORKSPACE
    replay: bool = False
    authentication: bool = True
    oidc: OidcSettings | None = None
    log: bool = True
    log_mode: LogMode = "file"
    pseudonymise: frozenset[Literal["unit", "entities"]] = frozenset()
    wal_root: Path | None = None
    log_limit_bytes: int = Field(default=1 << 30, ge=1 << 16)
    poll_s: float = Field(default=0.25, gt=0)
    num_replicas: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_in_flight: float = Field(default=8.0, gt=0)
    target_latency_ms: float | None = Field(default=None, gt=0)
    idle_s: float = Field(default=300.0, ge=0)
    num_cpus: float = Field(default=0.5, ge=0)
    on_serve_nodes: bool = False
    max_ongoing_requests: int = Field(default=256, ge=1)
    max_queued_requests: int = Field(default=1_024, ge=-1)
    max_body_bytes: int = Field(default=64 << 20, ge=1 << 10)
    max_held_bytes: int = Field(default=MAX_HELD_BYTES, ge=1 << 16)
    shadow_limit: int = Field(default=256, ge=1)
    metrics: bool = True
    sandbox: SandboxLimits = SandboxLimits()
    dedicated: DedicatedOptions | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **changes: Any) -> Self:
        """Options of the platform and workspace that `TOQUE_STORE`, `TOQUE_WORKSPACE` and so on name.

        changes: fields that differ. Raises: ValueError if the environment contradicts itself.
        """
        here = context_of(environment)
        found = {
            "store_url": here.platform_url,
            "redis_url": here.redis_url,
            "workspace": here.workspace,
            "replay": environment.get("TOQUE_CLOCK") == "replay",
            "log_mode": log_mode_of(here.log_mode),
            "wal_root": here.log_folder,
            "oidc": OidcSettings.from_environment(environment),
        }
        return cls.model_validate(found | changes)

    @field_validator("workspace")
    @classmethod
    def _named(cls, workspace: str) -> str:
        return check_workspace(workspace)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.log and self.log_mode != "file" and self.redis_url is None:
            raise ValueError(f"log_mode={self.log_mode!r} needs Redis; set TOQUE_REDIS_URL, or use 'file'")
        if self.max_replicas is not None:
            _check_bounds(self.min_replicas, self.max_replicas)
            if self.dedicated is not None:
                raise ValueError(
                    f"max_replicas={self.max_replicas} with dedicated: versions are scaled, their endpoint is not; "
                    "say dedicated.max_replicas, and num_replicas for the endpoint"
                )
        elif self.target_latency_ms is not None:
            raise ValueError(
                f"target_latency_ms={self.target_latency_ms:g} without max_replicas: nothing is scaled; say "
                f"{'dedicated.target_latency_ms' if self.dedicated is not None else 'max_replicas'}"
            )
        return self

    @property
    def scale(self) -> dict[str, Any]:
        """Arguments of a Serve deployment that set its number of replicas or its autoscaling."""
        if self.max_replicas is None:
            return {"num_replicas": self.num_replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "initial_replicas": max(1, self.min_replicas),
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_in_flight,
                "upscale_delay_s": 2.0,
                "downscale_delay_s": max(30.0, self.idle_s) if self.min_replicas else self.idle_s,
                "downscale_to_zero_delay_s": self.idle_s,
                "look_back_period_s": 5.0,
                "metrics_interval_s": 1.0,
                "policy": {"policy_function": POLICY, "policy_kwargs": self.targets},
            }
        }

    @property
    def targets(self) -> dict[str, float | None]:
        """Arguments of the autoscaling policy."""
        return {"target_latency_ms": self.target_latency_ms}

    @property
    def wal(self) -> Path:
        """The folder of the workspace's write-ahead files."""
        return default_wal_root(workspace_url(self.store_url, self.workspace), self.wal_root)


class PoolOptions(PredictorOptions):
    """Options of the pool: those of a predictor, a memory limit and pinned models.

    memory_limit_bytes: for the models of one replica, as estimated from their files (the process itself takes
    some 400 MB beside them). pinned: models that are loaded at the start and never evicted.
    """

    num_replicas: int = Field(default=2, ge=1)
    memory_limit_bytes: int = Field(default=1 << 30, ge=_LEAST_MEMORY)
    pinned: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **changes: Any) -> Self:
        """Options of the platform and workspace as of a predictor; `TOQUE_POOL_MEMORY_GB` is the memory limit. Raises: ValueError."""
        return super().from_environment(environment, **(_memory_of(environment.get(_MEMORY)) | changes))

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.dedicated is not None:
            raise ValueError("dedicated: a pool's versions live in its replicas; leave it out")
        return self


def _check_bounds(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"min_replicas={least} is more than max_replicas={most}; raise max_replicas")


def _memory_of(text: str | None) -> dict[str, int]:
    """Parse the memory limit of a pool in GB; nothing or 0 leaves it at the default. Raises: ValueError below a MiB."""
    try:
        size = int(float(text or 0) * 10**9)
    except (ValueError, OverflowError):
        size = -1
    if size and size < _LEAST_MEMORY:
        raise ValueError(f"{_MEMORY}={text}: give the memory for a pool's models in GB, 0.0011 at least")
    return {"memory_limit_bytes": size} if size else {}
