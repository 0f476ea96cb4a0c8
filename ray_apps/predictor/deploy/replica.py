"""What every replica has that answers requests, of models and of language models: its place on Serve, log and latency.

Latency is that of the answers of the last seconds, measured as they leave and reported to Serve once a second. Only
endpoints of autoscaled deployments are measured; the others have no cost of it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from operator import mul
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from toque.clusters.profile import apply_profile
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.functions.prediction_log import LogWriter
from toque.ray_apps.predictor.deploy.options import PredictorOptions
from toque.ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS
from toque.ray_apps.predictor.http.endpoint import Answer, Endpoint, Message, Request
from toque.ray_apps.predictor.inference.recording import Confirmation
from toque.ray_apps.predictor.protocol.errors import DeadlineExceeded
from toque.ray_apps.serve.spread import laid_out
from toque.registry.store import temporary_folder

LEAST_S, GROWTH, BUCKETS = 1e-5, 1.1, 192
"""Buckets a tenth wide, from 10 µs to a quarter of an hour: a percentile is right to 5 %."""
REPORTS = 5  # to Serve, one a second, over which durations count
QUANTILE = 0.95
PROBES_HZ = 100.0  # of the event loop's delay
TIMER_ERROR_S = 1e-3
"""uvloop's timers are good to a millisecond."""
ROUNDS = 2
"""A request is read in one round of the loop and has its turn in the next; a timer waits for the rest of one."""
_PER_BUCKET = 1 / math.log(GROWTH)
_MIDDLES_S = [LEAST_S * math.pow(GROWTH, bucket + 0.5) for bucket in range(BUCKETS)]
_ON_TRIAL = re.compile(r"/versions/[0-9]+/infer$")


def deployment_of(replica: Any, name: str, options: PredictorOptions) -> Any:
    """Make the Serve deployment of a class of replicas, with the scale, place and bounds that its options say."""
    return serve.deployment(  # Serve's overloads take a class with options for a decorator
        replica,
        name=name,
        **laid_out(
            {
                "on_serve_nodes": options.on_serve_nodes,
                "ray_actor_options": {"num_cpus": options.num_cpus},
                # One that asks for a core might wait for ever beside its predecessor, which has it.
                "max_surge_percent": 0 if options.num_cpus else 100,
                **options.scale,
            }
        ),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )


def open_log(options: PredictorOptions) -> LogWriter | None:
    """Open the prediction log of the options' workspace; None without Redis, or where answers are not logged."""
    if options.redis_url is None or not options.log:
        return None
    return LogWriter(
        options.wal,
        "predictions",
        options.redis_url,
        workspace=options.workspace,
        limit_bytes=options.log_limit_bytes,
        two_nodes=options.log_mode == "two_nodes",
        answers_first=options.log_mode != "two_nodes",
    )


def confirmation_of(log: LogWriter | None, options: PredictorOptions) -> Confirmation | None:
    """Make the waits of a model's answers for their records, as the mode of the log says."""
    if log is None or options.log_mode == "file":
        return None
    return Confirmation(log, strict=options.log_mode == "two_nodes")


def configure_process(limits: SandboxLimits) -> None:
    """Read the cluster's profile, give torch as many threads as CPUs are reserved, and shorten the interpreter's thread switches.

    limits: of the sandbox, whose process imports torch at the same time.
    """
    apply_profile(os.environ)
    sandbox_of(limits).start()
    import torch  # late: only replicas need it

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    sys.setswitchinterval(0.001)  # background threads delay the answering one for this long at most


@cache
def sandbox_of(limits: SandboxLimits) -> Sandbox:
    """The sandbox of this process; all processes of one user on one machine share its verdicts."""
    return Sandbox(limits, verdicts=temporary_folder("verdicts"), environment=os.environ)


class LatencySummary(NamedTuple):
    """Summary of the durations in a window: number, mean and 95th percentile in seconds; zeros if it is empty."""

    number: int
    mean_s: float
    p95_s: float


class Window:
    """Histogram of the durations between the last five calls of `roll`."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._before: deque[list[int]] = deque(maxlen=REPORTS - 1)

    def add(self, duration_s: float) -> None:
        """Count one duration in its bucket."""
        bucket = int(math.log(duration_s / LEAST_S) * _PER_BUCKET) if duration_s > LEAST_S else 0
        self._counts[bucket if bucket < BUCKETS else -1] += 1

    def roll(self) -> LatencySummary:
        """Summarize the durations since the fifth call before this one.

        The percentile's rank is rounded down, so that one late answer among less than twenty does not set it.
        """
        counts = [sum(column) for column in zip(self._counts, *self._before, strict=True)]
        self._before.append(self._counts)
        self._counts = [0] * BUCKETS
        total = sum(counts)
        if not total:
            return LatencySummary(0, 0.0, 0.0)
        mean_s = sum(map(mul, counts, _MIDDLES_S)) / total
        return LatencySummary(total, mean_s, _MIDDLES_S[_bucket_of(max(1, int(QUANTILE * total)), counts)])


def _bucket_of(rank: int, counts: list[int]) -> int:
    for bucket, count in enumerate(counts):
        rank -= count
        if rank <= 0:
            return bucket
    raise ValueError(f"the rank is {rank} more than the number of durations")


class Average:
    """Average over time of a number that rises and falls, between the last five calls of `roll`. clock: in seconds; value: the number now."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self.value, self._changed_at, self._sum = clock, 0.0, clock(), 0.0
        self._rolls: deque[tuple[float, float]] = deque([(self._changed_at, 0.0)], maxlen=REPORTS)

    def add(self, amount: float) -> float:
        """Change the number; returns the time."""
        now = self._clock()
        self._sum += self.value * (now - self._changed_at)
        self._changed_at = now
        self.value += amount
        return now

    def roll(self) -> tuple[float, float]:
        """Average since the fifth call before this one, and how many seconds that is."""
        now = self.add(0)
        then, before = self._rolls[0]
        self._rolls.append((now, self._sum))
        span_s = max(now - then, 1e-9)
        return (self._sum - before) / span_s, span_s


class LatencyMeter:
    """Measures a replica's answers, and how long requests wait for its event loop, for Serve's autoscaler.

    The endpoint of a model that answers on the loop sees a request only when the loop gets to it, as does Serve, so
    the wait before that is estimated: timers are set at random moments, as requests come, and their delay is measured.
    Belongs to one event loop. now: the clock, in seconds.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, chance: random.Random | None = None
    ) -> None:
        self.now, self._chance = clock, chance or random.Random()
        self._answers, self._delays = Window(), Window()
        self._open = Average(clock)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> float:
        """Count a request that comes in; returns its time."""
        return self._open.add(1)

    def end(self, begin: float, *, answered: bool) -> None:
        """Count a request that leaves; begin: measured from. answered: whether its duration is an answer's latency."""
        now = self._open.add(-1)
        if answered:
            self._answers.add(now - begin)

    def autoscaling_metrics(self) -> dict[str, float]:
        """Metrics of the time since the fifth call before this one; to be called once a second, on the event loop.

        Zeros if there were no answers, because Serve would go on using the last values otherwise.
        """
        if self._timer is None:
            self._due = self.now()
            self._tick()
        in_endpoint, span_s = self._open.roll()
        answers, delays = self._answers.roll(), self._delays.roll()
        before_loop = ROUNDS * delays.mean_s * answers.number / span_s
        return {
            ANSWERS: answers.number,
            LATENCY_MS: max(answers.p95_s, ROUNDS * delays.p95_s) * 1e3 if answers.number else 0.0,
            IN_FLIGHT: max(in_endpoint, before_loop),
        }

    def _tick(self) -> None:
        now = self.now()
        while self._due <= now:  # all that came due while the loop was busy, as requests would have
            self._delays.add(now - self._due - TIMER_ERROR_S)
            self._due += self._chance.expovariate(PROBES_HZ)
        self._timer = asyncio.get_running_loop().call_later(self._due - now, self._tick)

    def close(self) -> None:
        """Stop setting timers on the loop."""
        if self._timer is not None:
            self._timer.cancel()


class TimedEndpoint(Endpoint):
    """An endpoint around another one, which measures the latency of its predictions from the whole request on.

    Refusals are not measured, or an overloaded endpoint would look fast; requests that ran out of time are. Requests
    for a version by number are not: they are trials, and the version may have to be loaded first.
    """

    def __init__(self, endpoint: Endpoint, meter: LatencyMeter) -> None:
        super().__init__(max_in_flight=endpoint.max_in_flight)
        self._endpoint, self._meter = endpoint, meter

    def on_startup(self) -> None:
        """Call the wrapped endpoint's startup hook."""
        self._endpoint.on_startup()

    def index(self) -> list[dict[str, str]]:
        """The model versions of the wrapped endpoint."""
        return self._endpoint.index()

    async def close(self) -> None:
        """Close the wrapped endpoint and stop measuring."""
        self._meter.close()
        await self._endpoint.close()

    async def answer(self, request: Request) -> Answer:
        """Answer by the wrapped endpoint. Raises: PredictorError."""
        if not request.path.endswith("/infer") or _ON_TRIAL.search(request.path):
            return await self._endpoint.answer(request)
        whole_at, in_pieces, answered = self._meter.begin(), False, False
        receive = request.receive

        async def read() -> Message:
            nonlocal whole_at, in_pieces
            message = await receive()
            if in_pieces:  # the time that a caller takes to send a large body does not count
                whole_at = self._meter.now()
            in_pieces = message.get("more_body", False)
            return message

        request.receive = read
        try:
            answer = await self._endpoint.answer(request)
            answered = True
        except (DeadlineExceeded, asyncio.CancelledError):
            answered = True
            raise
        finally:
            self._meter.end(whole_at, answered=answered)
        return answer

    def autoscaling_metrics(self) -> dict[str, float]:
        """Metrics of the last seconds; called once a second."""
        return self._meter.autoscaling_metrics()


__all__ = [
    "Average",
    "LatencyMeter",
    "LatencySummary",
    "TimedEndpoint",
    "Window",
    "configure_process",
    "confirmation_of",
    "deployment_of",
    "open_log",
    "sandbox_of",
]
