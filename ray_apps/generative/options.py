"""Options of the door of language models, and where it is served."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from ray_apps.predictor.deploy.options import PredictorOptions

__all__ = ["APP", "ROUTE_PREFIX", "GenerativeOptions"]

APP: Final = "generative"
ROUTE_PREFIX: Final = "/v1"
"""The Serve application of all workspaces' language models, and its route prefix, which a client has as its base URL."""


class GenerativeOptions(PredictorOptions):
    """Options of the door: those of a predictor, and the engine.

    engine: `llama.cpp` or `vllm`; engine_program: Python of llama.cpp's environment, or the command `vllm`; None: this
    process's, or that on the path. engine_threads: of each engine, None: all cores. start_s: for a version to be ready.
    """

    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10)
    engine: str = "llama.cpp"
    engine_program: str | None = None
    engine_threads: int | None = Field(default=None, ge=1)
    start_s: float = Field(default=300.0, gt=0)
