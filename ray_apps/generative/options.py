"""Options of the door of language models, and where it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, model_validator

from toque.functions.runtime.receipt import Prices, TokenPrice
from toque.ray_apps.predictor.deploy.options import PredictorOptions

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
    token_prices: by which each answer's cost is logged, as of `Prices.tokens`; by default those of the environment.
    """

    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10)
    engine: str = "llama.cpp"
    engine_program: str | None = None
    engine_threads: int | None = Field(default=None, ge=1)
    start_s: float = Field(default=300.0, gt=0)
    target_tokens: float | None = Field(default=None, gt=0)
    token_prices: dict[str, TokenPrice] = Field(default_factory=dict)

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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **changes: Any) -> Self:
        """Options as of a predictor, and the prices of tokens. Raises: ValueError if the environment contradicts itself."""
        prices = Prices.of_environment(environment)
        tokens = {"token_prices": prices.tokens} if prices is not None else {}
        return super().from_environment(environment, **(tokens | changes))

    def token_price(self, model: str) -> TokenPrice | None:
        """Find the price of a model's tokens; None if they have none."""
        return self.token_prices.get(model) or self.token_prices.get("*")
