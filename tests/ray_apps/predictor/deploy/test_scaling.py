"""Number of replicas by latency: the rule by itself, and in Serve's own bookkeeping on a fake clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deployment_info import DeploymentInfo

from toque.ray_apps.generative.deployment import application as generative_application
from toque.ray_apps.generative.options import GenerativeOptions
from toque.ray_apps.predictor import DedicatedOptions, PredictorOptions, application
from toque.ray_apps.predictor.deploy.dedicated import version_application
from toque.ray_apps.predictor.deploy.scaling import (
    ANSWERS,
    IN_FLIGHT,
    LATENCY_MS,
    TOKENS,
    pooled,
    replicas_by_latency,
    replicas_by_tokens,
    tokens_in_flight,
)

STORE = "file:///tmp/nowhere"
TARGET_MS = 100.0

latencies = st.floats(0.01, 1e5)
replicas = st.integers(1, 50)
requests = st.floats(0, 500)


@pytest.mark.parametrize(
    ("latency_ms", "now", "wanted"),
    [
        (100, 3, 3),
        (101, 3, 4),
        (150, 4, 6),
        (250, 4, 8),
        (9_999, 4, 8),
        (50, 4, 4),
        (49, 4, 4),
        (37, 4, 3),
        (25, 4, 2),
        (1, 4, 1),
    ],
)
def test_in_proportion_above_the_target_none_less_down_to_half_of_it(
    latency_ms: float, now: int, wanted: int
):
    assert replicas_by_latency(latency_ms, TARGET_MS, replicas=now, requests=99, settled=True) == wanted


def test_a_slow_model_with_one_request_at_a_time_keeps_one_replica():
    for running in (1, 4):
        assert replicas_by_latency(900, TARGET_MS, replicas=running, requests=1.0, settled=True) == 1


@given(latency=latencies, now=replicas, load=requests)
def test_nothing_but_holding_is_asked_for_until_the_number_has_settled(latency: float, now: int, load: float):
    wanted = replicas_by_latency(latency, TARGET_MS, replicas=now, requests=load, settled=False)
    assert wanted == min(now, math.ceil(load))


@given(latency=latencies, now=replicas, load=requests)
def test_above_the_target_no_replica_is_given_up_that_a_request_could_use(
    latency: float, now: int, load: float
):
    wanted = replicas_by_latency(latency, TARGET_MS, replicas=now, requests=load, settled=True)
    if latency > TARGET_MS:
        assert wanted >= min(now, math.ceil(load))
    assert wanted <= min(2 * now, math.ceil(load))


@given(one=latencies, other=latencies, now=replicas, load=requests)
def test_higher_latency_never_asks_for_fewer(one: float, other: float, now: int, load: float):
    low, high = (
        replicas_by_latency(latency, TARGET_MS, replicas=now, requests=load, settled=True)
        for latency in sorted((one, other))
    )
    assert low <= high


@given(
    service_ms=st.floats(0, 300),
    queue_ms=st.floats(0, 100),
    load=st.integers(1, 200),
    most=replicas,
    first=replicas,
)
def test_under_a_constant_load_the_number_comes_to_rest(
    service_ms: float, queue_ms: float, load: int, most: int, first: int
):
    """What an answer takes: a part of its own, and a part in proportion to the requests in a replica."""
    now, seen = min(first, most), [min(first, most)]
    for _ in range(60):
        latency = service_ms + queue_ms * load / now
        wanted = replicas_by_latency(latency, TARGET_MS, replicas=now, requests=load, settled=True)
        now = min(max(1, wanted), most)
        seen.append(now)
    ups = [after > before for before, after in pairwise(seen) if after != before]
    assert len(set(ups)) <= 1, seen  # once up never down, once down never up
    assert seen[-1] == seen[-2], seen


def test_replicas_count_by_their_answers_and_stale_or_half_figures_not_at_all():
    def at(time: float, value: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(timestamp=0.0, value=1e6), SimpleNamespace(timestamp=time, value=value)]

    figures: dict[str, dict[Any, Any]] = {
        ANSWERS: {
            "a": at(9, 30),
            "b": at(9, 10),
            "idle": at(9, 0),
            "gone": at(4, 99),
            "new": [],
            "old": at(9, 5),
        },
        LATENCY_MS: {"a": at(9, 10.0), "b": at(9, 50.0), "idle": at(9, 0.0), "gone": at(4, 1e3)},
        IN_FLIGHT: {"a": at(9, 2.5), "b": at(9, 1.0), "idle": at(9, 0.0), "gone": at(4, 70)},
    }
    assert pooled(figures, since=5) == (20.0, 3.5)
    assert pooled(figures, since=9.5) == (None, 0.0)
    assert pooled({}, since=5) == (None, 0.0)


@pytest.mark.parametrize(
    ("tokens", "in_flight", "wanted"),
    [(0, 0, 0), (0, 0.2, 1), (1, 0.2, 1), (4_000, 99, 1), (4_001, 1, 2), (40_000, 3, 10)],
)
def test_replicas_by_tokens_hold_the_target_and_one_answers_while_there_are_requests(
    tokens: float, in_flight: float, wanted: int
):
    assert replicas_by_tokens(tokens, 4_000, requests=in_flight) == wanted


@given(st.floats(0, 1e6), st.floats(0, 1e6), requests)
def test_more_tokens_never_ask_for_fewer_replicas(one: float, other: float, load: float):
    fewer, more = sorted((one, other))
    assert replicas_by_tokens(fewer, 4_000, requests=load) <= replicas_by_tokens(more, 4_000, requests=load)
    assert replicas_by_tokens(more, 4_000, requests=load) * 4_000 >= more


def test_tokens_are_those_of_replicas_that_report_now():
    def at(time: float, value: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(timestamp=time, value=value)]

    figures: dict[str, dict[Any, Any]] = {
        TOKENS: {"a": at(9, 70), "b": at(9, 5), "gone": at(4, 900), "new": []}
    }
    assert tokens_in_flight(figures, since=5) == 75
    assert tokens_in_flight({}, since=5) == 0


class Serve:
    """What Serve's controller keeps of a deployment, as it is deployed, and asks its policy by; without a cluster."""

    def __init__(self, patch: pytest.MonkeyPatch, made: Any = None, **options: Any) -> None:
        made = application("late", PredictorOptions(store_url=STORE, **options)) if made is None else made
        sent = made._bound_deployment._deployment_config.to_proto_bytes()
        config = DeploymentConfig.from_proto_bytes(sent)
        self.now_s = 1e9
        clock = SimpleNamespace(time=lambda: self.now_s, monotonic=lambda: self.now_s)
        for module in ("autoscaling_policy", "_private.autoscaling_state"):
            patch.setattr(f"ray.serve.{module}.time", clock)
        self._id = DeploymentID("predict-late", "predictor-late")
        self._state = DeploymentAutoscalingState(self._id)
        info = DeploymentInfo(
            deployment_config=config, replica_config=None, start_time_ms=0, deployer_job_id=""
        )
        self.target = self._state.register(info, 1)

    def after(
        self,
        seconds: int,
        *,
        in_flight: float,
        latency_ms: float | None,
        waiting: float = 0.0,
        tokens: float = 0.0,
    ) -> int:
        """How many replicas there are once each said this every second; new ones start within one.

        in_flight: in all of them, as Serve counts. waiting: that only the replicas know of. tokens: of all requests in flight.
        """
        for _ in range(seconds):
            self.now_s += 1
            running = [ReplicaID(str(number), self._id) for number in range(self.target)]
            self._state.update_running_replica_ids(running)
            for replica in running:
                self._report(
                    replica,
                    in_flight / len(running),
                    waiting / len(running),
                    latency_ms,
                    tokens / len(running),
                )
            self.target = self._state.get_decision_num_replicas(self.target)
        return self.target

    def _report(
        self, replica: ReplicaID, in_flight: float, waiting: float, latency_ms: float | None, tokens: float
    ) -> None:
        said: Mapping[str, float] = {
            RUNNING_REQUESTS_KEY: in_flight,
            ANSWERS: 0 if latency_ms is None else 20,
            LATENCY_MS: latency_ms or 0.0,
            IN_FLIGHT: in_flight + waiting,
            TOKENS: tokens,
        }
        points: Any = {name: [TimeStampedValue(self.now_s, value)] for name, value in said.items()}
        self._state.record_request_metrics_for_replica(
            ReplicaMetricReport(replica_id=replica, metrics=points, timestamp=self.now_s)
        )


def test_serve_scales_up_by_latency_within_its_bounds_and_down_when_it_is_low(
    monkeypatch: pytest.MonkeyPatch,
):
    serve = Serve(monkeypatch, max_replicas=3, idle_s=30, target_latency_ms=TARGET_MS)
    assert serve.after(9, in_flight=6, latency_ms=500) == 1  # not yet settled
    assert serve.after(5, in_flight=6, latency_ms=500) == 2
    assert serve.after(9, in_flight=6, latency_ms=500) == 2  # figures of before the second one
    assert serve.after(5, in_flight=6, latency_ms=500) == 3
    assert serve.after(60, in_flight=6, latency_ms=500) == 3
    assert serve.after(90, in_flight=6, latency_ms=60) == 3
    assert serve.after(90, in_flight=6, latency_ms=10) == 1


def test_serve_keeps_what_requests_in_flight_take_however_fast_they_are(monkeypatch: pytest.MonkeyPatch):
    serve = Serve(monkeypatch, max_replicas=4, target_in_flight=2, target_latency_ms=TARGET_MS)
    assert serve.after(120, in_flight=6, latency_ms=1) == 3
    assert serve.after(120, in_flight=60, latency_ms=1) == 4


def test_a_model_scaled_by_latency_goes_to_zero_as_any_other(monkeypatch: pytest.MonkeyPatch):
    serve = Serve(monkeypatch, min_replicas=0, max_replicas=3, idle_s=60, target_latency_ms=TARGET_MS)
    assert serve.after(20, in_flight=2, latency_ms=500) == 2
    assert serve.after(110, in_flight=0, latency_ms=None) > 0
    assert serve.after(60, in_flight=0, latency_ms=None) == 0
    assert serve.after(60, in_flight=0, latency_ms=None) == 0


def test_one_slow_answer_at_a_time_is_no_reason_for_a_second_replica(monkeypatch: pytest.MonkeyPatch):
    serve = Serve(monkeypatch, max_replicas=3, target_latency_ms=TARGET_MS)
    assert serve.after(120, in_flight=1, latency_ms=5_000) == 1


def test_requests_that_serve_cannot_see_are_a_reason_all_the_same(monkeypatch: pytest.MonkeyPatch):
    serve = Serve(monkeypatch, max_replicas=4, target_latency_ms=TARGET_MS)
    assert serve.after(120, in_flight=0, waiting=2.5, latency_ms=500) == 3


def test_a_model_whose_requests_serve_cannot_see_is_not_idle(monkeypatch: pytest.MonkeyPatch):
    serve = Serve(monkeypatch, min_replicas=0, max_replicas=3, idle_s=30, target_latency_ms=TARGET_MS)
    assert serve.after(120, in_flight=0, waiting=0.5, latency_ms=1) == 1
    assert serve.after(60, in_flight=0, latency_ms=None) == 0


def test_a_fast_model_without_a_target_is_neither_idle_nor_alone_while_many_ask(
    monkeypatch: pytest.MonkeyPatch,
):
    serve = Serve(monkeypatch, min_replicas=0, max_replicas=3, target_in_flight=2, idle_s=30)
    assert serve.after(120, in_flight=0, waiting=0.1, latency_ms=1) == 1
    assert serve.after(120, in_flight=0, waiting=3.5, latency_ms=5_000) == 2  # however late
    assert serve.after(120, in_flight=0, latency_ms=None) == 0


def language_models(**options: Any) -> Any:
    return generative_application(GenerativeOptions(store_url=STORE, **options))


def test_language_models_are_scaled_by_their_tokens_and_not_by_their_requests(
    monkeypatch: pytest.MonkeyPatch,
):
    made = language_models(min_replicas=0, max_replicas=4, target_tokens=4_000, idle_s=30)
    serve = Serve(monkeypatch, made)
    assert serve.after(60, in_flight=30, tokens=3_000, latency_ms=500) == 1  # many that are short
    assert serve.after(60, in_flight=3, tokens=11_000, latency_ms=500) == 3  # few that are long
    assert serve.after(60, in_flight=1, tokens=200, latency_ms=500) == 1
    assert serve.after(60, in_flight=1, tokens=0, latency_ms=None) == 1  # its prompt is not counted yet
    assert serve.after(120, in_flight=0, tokens=0, latency_ms=None) == 0


def test_late_first_tokens_bring_replicas_that_the_tokens_in_flight_do_not(monkeypatch: pytest.MonkeyPatch):
    made = language_models(max_replicas=3, target_tokens=4_000, target_latency_ms=TARGET_MS, idle_s=30)
    serve = Serve(monkeypatch, made)
    assert serve.after(60, in_flight=6, tokens=900, latency_ms=5_000) == 3
    assert serve.after(90, in_flight=6, tokens=900, latency_ms=60) == 3
    assert serve.after(90, in_flight=6, tokens=900, latency_ms=10) == 1
    assert serve.after(60, in_flight=6, tokens=9_000, latency_ms=10) == 3


def test_always_as_many_replicas_have_no_policy():
    assert PredictorOptions(store_url=STORE, num_replicas=3).scale == {"num_replicas": 3}


def test_a_version_of_its_own_has_a_target_of_its_own():
    own = DedicatedOptions(max_replicas=3, target_latency_ms=40)
    found: Any = version_application("late", 7, PredictorOptions(store_url=STORE, dedicated=own))
    policy = found._bound_deployment._deployment_config.autoscaling_config.policy
    assert policy.policy_kwargs == {"target_latency_ms": 40}


def test_a_target_where_nothing_is_scaled_is_refused():
    with pytest.raises(ValidationError, match=r"target_latency_ms=40 without max_replicas"):
        PredictorOptions(store_url=STORE, target_latency_ms=40)
    with pytest.raises(ValidationError, match=r"target_tokens=4000 without max_replicas"):
        GenerativeOptions(store_url=STORE, target_tokens=4_000)
    with pytest.raises(ValidationError, match=r"say dedicated\.target_latency_ms"):
        PredictorOptions(store_url=STORE, target_latency_ms=40, dedicated=DedicatedOptions(max_replicas=2))
    with pytest.raises(ValidationError, match=r"target_latency_ms=40 for always 2 replicas"):
        DedicatedOptions(min_replicas=2, max_replicas=2, target_latency_ms=40)
