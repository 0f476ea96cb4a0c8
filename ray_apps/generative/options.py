"""Options of the door of language models, and where it is served."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from ray_apps.predictor.deploy.options import PredictorOptions

__all__ = ["APP", "ROUTE_PREFIX", "GenerativeOptions"]

APP: Final = "generative"
ROUTE_PREFIX: Final = "/v1"
"""The Serve application of all workspaces' language models, and its route prefix, which a client has as its base URL."""


class GenerativeOptions(PredictorOptions):
    """Options of the door: those of a predictor, and the engine.

    engine: `llama.cpp` or `vllm`; engine_program: Python of llama.cpp's environment, or the command `vllm`; None: this
    process's, or that on the path. engine_threads: of each engine, None: all cores. start_s: for a version to be ready.

    target_latency_ms: of the first token. target_tokens: scale the replicas so that the requests in flight in each may come to so
    many tokens, prompts and answers together, whatever their number is; None: by their number.
    """

    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10)
    engine: str = "llama.cpp"
    engine_program: str | None = None
    engine_threads: int | None = Field(default=None, ge=1)
    start_s: float = Field(default=300.0, gt=0)
    target_tokens: float | None = Field(default=None, gt=0)

    @property
    def targets(self) -> dict[str, float | None]:
        """Arguments of the autoscaling policy."""
        return super().targets | {"target_tokens": self.target_tokens}

    @model_validator(mode="after")
    def _scaled(self) -> Self:
        if self.target_tokens is not None and self.max_replicas is None:
            raise ValueError(
                f"target_tokens={self.target_tokens:g} without max_replicas: nothing is scaled; say max_replicas"
            )
        return self
