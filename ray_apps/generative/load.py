"""What Serve scales the door of language models by: requests and tokens in flight, and how late first tokens are."""

from __future__ import annotations

import time
from collections.abc import Callable

from toque.ray_apps.predictor.deploy.latency import Average, Window
from toque.ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS, TOKENS

__all__ = ["Load", "LoadMeter"]


class LoadMeter:
    """Measures the requests of a replica, of all of its models; belongs to one event loop. clock: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.requests, self.tokens, self.first_tokens = Average(clock), Average(clock), Window()

    def begin(self) -> Load:
        """Count a request that comes in, until its load is closed."""
        return Load(self)

    def autoscaling_metrics(self) -> dict[str, float]:
        """Metrics of the time since the fifth call before this one; to be called once a second."""
        first, (requests, _), (tokens, _) = self.first_tokens.roll(), self.requests.roll(), self.tokens.roll()
        return {
            ANSWERS: first.number,
            LATENCY_MS: first.p95_s * 1e3,
            IN_FLIGHT: requests,
            TOKENS: tokens,
        }


class Load:
    """What one request is of the load. It has no tokens until its prompt is counted: what is refused before costs no engine time."""

    def __init__(self, meter: LoadMeter) -> None:
        self._meter, self._tokens, self._is_waiting = meter, 0, False
        self._begin = meter.requests.add(1)

    def hold(self, tokens: int) -> None:
        """Count the tokens that the request may come to; from now on it waits for the first one."""
        self._tokens, self._is_waiting = tokens, True
        self._meter.tokens.add(tokens)

    def first_token(self, after_s: float) -> None:
        """Note that the first token came so many seconds after the request."""
        if self._is_waiting:
            self._is_waiting = False
            self._meter.first_tokens.add(after_s)

    def close(self) -> None:
        """End what the request takes. One without a first token counts with all of its time: an embedding, and one that was given up."""
        self.first_token(self._meter.requests.add(-1) - self._begin)
        self._meter.tokens.add(-self._tokens)
