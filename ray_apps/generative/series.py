"""What language models count beside what every model does: tokens and their times for Prometheus, and load for Serve.

Serve scales the door by requests and tokens in flight, and by how late first tokens are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from toque.clusters.telemetry.metrics import OTHER, Bounded, Durations, Rising, flush_regularly
from toque.functions.generative import Finding
from toque.functions.generative.engines import EngineProcesses
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.predictor.deploy.replica import Average, Window
from toque.ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS, TOKENS
from toque.registry import SERVICE_TIERS

_ARM = ("workspace", "model", "version", "arm")
_MOST: Final = 1_000
FIRST_TOKEN_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BETWEEN_TOKENS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
TOKENS_OF_REQUESTS = Counter(
    "toque_generative_tokens",
    "Tokens of prompts, those of them that were cached, and of answers.",
    (*_ARM, "kind"),
)
FIRST_TOKEN = Histogram(
    "toque_generative_first_token_seconds",
    "Seconds from a request to the first token of its answer.",
    _ARM,
    buckets=FIRST_TOKEN_S,
)
BETWEEN_TOKENS = Histogram(
    "toque_generative_between_tokens_seconds",
    "Seconds between two tokens of an answer, on average over the answer.",
    _ARM,
    buckets=BETWEEN_TOKENS_S,
)
DECLINED = Counter(
    "toque_generative_declined_answers",
    "Answers by which the model declined to answer, as far as their first words say so, in English or by the model's policy.",
    _ARM,
)
GUARDRAILS = Counter(
    "toque_generative_guardrail_findings",
    "Requests and answers in which a guardrail found something, by stage (before, after), rule and action.",
    (*_ARM, "stage", "rule", "action"),
)
ENGINES = Gauge(
    "toque_generative_engines",
    "Engines that are kept running, without those that ended as nobody asked them.",
    multiprocess_mode="livesum",
)
WAITING = Gauge(
    "toque_generative_waiting_requests",
    "Requests that wait for a slot of an engine, by service tier.",
    ("tier",),
    multiprocess_mode="livesum",
)
RESTARTS = Counter("toque_generative_engine_restarts", "Engines that died or hung, and were started anew.")
_arms = Bounded(_MOST)


class TokenSeries:
    """Numbers of one version in one arm, counted by the event loop alone."""

    def __init__(self, workspace: str, model: str, version: int, arm: str) -> None:
        labels = (workspace, model, str(version), arm)
        if _arms("/".join(labels)) == OTHER:
            labels = (OTHER, OTHER, OTHER, OTHER)
        self.prompt, self.cached, self.completion, self.declined = 0, 0, 0, 0
        self._rising = {
            kind: Rising(TOKENS_OF_REQUESTS.labels(*labels, kind))
            for kind in ("prompt", "cached", "completion")
        }
        self._rising["declined"] = Rising(DECLINED.labels(*labels))
        self._labels = labels
        self._found: dict[tuple[str, str, str], tuple[Rising, list[int]]] = {}
        self._first = Durations(FIRST_TOKEN.labels(*labels))
        self._between = Durations(BETWEEN_TOKENS.labels(*labels))
        flush_regularly(self)

    def count(self, answer: AnswerRecord, *, declined: bool) -> None:
        """Count the tokens and times of an answer, and whether the model declined to give one."""
        self.prompt += answer.prompt_tokens
        self.cached += answer.cached_tokens
        self.completion += answer.completion_tokens
        self.declined += declined
        if not math.isnan(answer.first_token_s):
            self._first.observe(answer.first_token_s)
        if answer.between_tokens_s > 0:
            self._between.observe(answer.between_tokens_s)

    def found(self, findings: Sequence[Finding]) -> None:
        """Count a request by each rule that found something in it or in its answer; the rules of a version are few."""
        for each in findings:
            key = (each.stage, each.rule, each.action)
            if key not in self._found:
                self._found[key] = Rising(GUARDRAILS.labels(*self._labels, *key)), [0]
            self._found[key][1][0] += 1

    def flush(self) -> None:
        """Move the numbers to the series."""
        for found, count in list(self._found.values()):
            found.to(count[0])
        for kind, rising in self._rising.items():
            rising.to(getattr(self, kind))
        self._first.flush()
        self._between.flush()


class EngineSeries:
    """Series of the engines of one process."""

    def __init__(self, engines: EngineProcesses) -> None:
        self._engines, self._restarts = engines, Rising(RESTARTS)
        flush_regularly(self)

    def flush(self) -> None:
        """Move the numbers to the series."""
        running = self._engines.processes
        ENGINES.set(sum(not each.is_idle for each in running))
        for tier in SERVICE_TIERS:
            WAITING.labels(tier).set(sum(each.slots.waiting(tier) for each in running))
        self._restarts.to(self._engines.restarts)


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


__all__ = ["EngineSeries", "Load", "LoadMeter", "TokenSeries"]
