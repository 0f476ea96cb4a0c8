"""How many replicas there are to be, by the requests in flight and by the latency of answers.

`Policy` is called by Serve's controller, ten times a second. The module is sent there by value, so it uses
nothing of ours. It decides for this moment only: Serve applies the deployment's bounds and delays to what it says,
as to its own rule (`ray/serve/autoscaling_policy.py`, `_apply_autoscaling_config`; Ray 2.60).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

__all__ = ["ANSWERS", "IN_FLIGHT", "LATENCY_MS", "Policy", "TimedValue", "pooled", "replicas_by_latency"]

ANSWERS, LATENCY_MS, IN_FLIGHT = "toque_answers", "toque_latency_ms", "toque_in_flight"
"""What a replica reports of its last seconds: how many answers, the 95th percentile of their latency, and how many
requests it had on average. Serve counts those too, but none that wait for the event loop."""
AT_ONCE = 2.0
"""So many times as many replicas at once, however late the answers are."""
SETTLED_S = 10.0
"""A number of replicas is judged once it has run for so long: until then the figures are of the number before, or of
replicas whose first answers are slow."""
STALE_S = 30.0
"""A figure older than this is of a replica that reports no more; clocks of two machines differ by less."""


class TimedValue(Protocol):
    """A figure at a time: Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


Figures = Mapping[str, Mapping[Any, Sequence[TimedValue]]]
"""By name and replica, oldest first."""


def replicas_by_latency(
    latency_ms: float, target_ms: float, *, replicas: int, requests: float, settled: bool
) -> int:
    """Replicas that latency asks for: more above the target, as many down to half of it, below that fewer.

    replicas: that there are to be now. requests: in flight in all of them. settled: whether the latency is one of so
    many replicas; if not, it asks for no other number.

    Never more than requests in flight: with a replica to itself a request waits for no other, and if it is late all
    the same, more replicas do not help. Fewer only so far that what is left would stay below half the target,
    were latency in proportion to the requests in a replica, which it is at most.
    """
    share = latency_ms / target_ms
    share = min(share, AT_ONCE) if share > 1 else min(2 * share, 1.0)
    return min(math.ceil(replicas * (share if settled else 1.0)), math.ceil(requests))


def pooled(figures: Figures, *, since: float) -> tuple[float | None, float]:
    """The latency of a deployment in ms, that of its replicas weighted by their answers, and its requests in flight.

    None for the latency if there were no answers. since: older figures do not count, in seconds of the epoch; nor do
    those of a replica that did not report all three, as one of other code while a deploy goes on.
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


class Policy:
    """An autoscaling policy of Serve: what requests in flight ask for, or what latency asks for if that is more.

    Serve's own rule counts no request that waits for the event loop or is answered on it: a fast model would be taken
    for idle while it answers. So what the replicas themselves count is seen too.
    target_latency_ms: what the 95th percentile is to stay below; None: whatever it is.
    """

    def __init__(self, target_latency_ms: float | None = None) -> None:
        self._target_ms = target_latency_ms

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Replicas wanted now, and what to remember until the next call.

        context: Serve's `AutoscalingContext`.
        """
        by_requests, _ = replica_queue_length_autoscaling_policy(context)
        running, since = _running_since(context)
        memory = {"running": running, "since": since}
        latency_ms, requests = pooled(context.raw_metrics or {}, since=context.current_time - STALE_S)
        by_requests = max(by_requests, math.ceil(requests / context.config.get_target_ongoing_requests()))
        if latency_ms is None or self._target_ms is None:
            return by_requests, memory
        target = context.target_num_replicas
        by_latency = replicas_by_latency(
            latency_ms,
            self._target_ms,
            replicas=target,
            requests=max(requests, context.total_num_requests),
            settled=running == target and context.current_time - since >= SETTLED_S,
        )
        return max(by_requests, by_latency), memory


def _running_since(context: Any) -> tuple[int, float]:
    """How many replicas run, and since when it is so many."""
    running = context.current_num_replicas
    before = context.policy_state
    return running, before["since"] if before.get("running") == running else context.current_time
