"""Autoscaling policy: the number of replicas by the requests or tokens in flight and the latency of answers.

`Policy` is called by Serve's controller, ten times a second. The module is sent there by value, so it imports
no other module of the project. It decides for this moment only: Serve applies the deployment's bounds and delays
as it does to its own policy (`ray/serve/autoscaling_policy.py`, `_apply_autoscaling_config`; Ray 2.60).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

__all__ = [
    "ANSWERS",
    "IN_FLIGHT",
    "LATENCY_MS",
    "TOKENS",
    "Policy",
    "TimedValue",
    "pooled",
    "replicas_by_latency",
    "replicas_by_tokens",
    "tokens_in_flight",
]

ANSWERS, LATENCY_MS, IN_FLIGHT = "toque_answers", "toque_latency_ms", "toque_in_flight"
"""Metrics that a replica reports of its last seconds: the number of answers, the 95th percentile of their latency, and
the average number of requests in flight, which counts those that wait for the event loop; Serve's own does not."""
TOKENS = "toque_tokens"
"""Metric of a replica of language models: the average number of tokens that the requests in flight may come to."""
AT_ONCE = 2.0
"""Largest factor by which one decision raises the number of replicas, however late the answers are."""
SETTLED_S = 10.0
"""How long a number of replicas must have run before its latency counts: until then the metrics are of the number
before, or of replicas whose first answers are slow."""
STALE_S = 30.0
"""Age from which a metric is of a replica that reports no more; clocks of two machines differ by less."""


class TimedValue(Protocol):
    """A metric's value at a time: Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


Figures = Mapping[str, Mapping[Any, Sequence[TimedValue]]]
"""Values by metric and replica, oldest first."""


def replicas_by_latency(
    latency_ms: float, target_ms: float, *, replicas: int, requests: float, settled: bool
) -> int:
    """Number of replicas for a latency: more above the target, unchanged down to half of it, fewer below that.

    replicas: the present target number. requests: in flight in all of them. settled: whether the latency was measured
    with that number; if not, the number stays.

    Never more than requests in flight: a request with a replica to itself waits for no other, so more replicas would
    not help it. Fewer only as far as the latency would stay below half the target if it grew in proportion to the
    requests in a replica, which is the most it does.
    """
    share = latency_ms / target_ms
    share = min(share, AT_ONCE) if share > 1 else min(2 * share, 1.0)
    return min(math.ceil(replicas * (share if settled else 1.0)), math.ceil(requests))


def pooled(figures: Figures, *, since: float) -> tuple[float | None, float]:
    """Pool the replicas' metrics: the latency in ms, weighted by their answers, and the requests in flight.

    The latency is None without answers. since: in seconds of the epoch; older values are ignored, as are those of a
    replica that does not report all three metrics, such as one with older code during a deploy.
    """
    answers = total_ms = in_flight = 0.0
    for replica in figures.get(ANSWERS, {}):
        reported = [figures.get(name, {}).get(replica) for name in (ANSWERS, LATENCY_MS, IN_FLIGHT)]
        last = [values[-1] for values in reported if values]
        if len(last) < len(reported) or last[0].timestamp < since:
            continue
        count, latency_ms, requests = (value.value for value in last)
        answers += count
        total_ms += count * latency_ms
        in_flight += requests
    return total_ms / answers if answers else None, in_flight


def tokens_in_flight(figures: Figures, *, since: float) -> float:
    """Sum the tokens in flight of all replicas. since: in seconds of the epoch; older values are ignored."""
    last = [values[-1] for values in figures.get(TOKENS, {}).values() if values]
    return sum(each.value for each in last if each.timestamp >= since)


def replicas_by_tokens(tokens: float, target: float, *, requests: float) -> int:
    """Number of replicas of which each has at most `target` tokens in flight; at least one while there are requests.

    tokens, requests: in flight in all of them. A request whose prompt has not been counted yet has no tokens.
    """
    return max(math.ceil(tokens / target), int(requests > 0))


class Policy:
    """Autoscaling policy for Serve: the replicas that requests in flight need, or that latency needs if that is more.

    Serve's own rule counts no request that waits for the event loop or is answered on it: a fast model would be taken
    for idle while it answers. So the requests that the replicas themselves count are used too.
    target_latency_ms: bound for the 95th percentile; None scales by what is in flight alone. target_tokens: of a replica in
    flight; None: requests count, as the deployment's target says.
    """

    def __init__(self, target_latency_ms: float | None = None, target_tokens: float | None = None) -> None:
        self._target_ms, self._target_tokens = target_latency_ms, target_tokens

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Number of replicas wanted now, and the state to pass to the next call.

        context: Serve's `AutoscalingContext`.
        """
        running, since = _running_since(context)
        memory = {"running": running, "since": since}
        latency_ms, requests = pooled(context.raw_metrics or {}, since=context.current_time - STALE_S)
        by_load = self._by_load(context, requests)
        if latency_ms is None or self._target_ms is None:
            return by_load, memory
        target = context.target_num_replicas
        by_latency = replicas_by_latency(
            latency_ms,
            self._target_ms,
            replicas=target,
            requests=max(requests, context.total_num_requests),
            settled=running == target and context.current_time - since >= SETTLED_S,
        )
        return max(by_load, by_latency), memory

    def _by_load(self, context: Any, requests: float) -> float:
        by_requests, _ = replica_queue_length_autoscaling_policy(context)
        if self._target_tokens is not None:
            tokens = tokens_in_flight(context.raw_metrics or {}, since=context.current_time - STALE_S)
            return replicas_by_tokens(tokens, self._target_tokens, requests=max(requests, by_requests))
        found: float = max(by_requests, math.ceil(requests / context.config.get_target_ongoing_requests()))
        return found


def _running_since(context: Any) -> tuple[int, float]:
    """The number of running replicas, and since when it has been that number."""
    running = context.current_num_replicas
    before = context.policy_state
    return running, before["since"] if before.get("running") == running else context.current_time
