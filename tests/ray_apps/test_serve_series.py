"""Gauges of Serve's applications: ill ones, replicas that do not come, and a head that answers late or with an error."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from toque.ray_apps.platform_series import ServeSeries
from toque.ray_apps.published import FAMILIES, Families


def application(status: str, **deployments: dict[str, int]) -> Any:
    replicas = {name: SimpleNamespace(replica_states=states) for name, states in deployments.items()}
    return SimpleNamespace(status=status, deployments=replicas)


def samples(series: ServeSeries) -> dict[tuple[str, ...], float]:
    families = Families()
    try:
        series.measure(families)
    except (TimeoutError, RuntimeError):
        assert {family.name for family in families.metrics()} == {"toque_head_up"}
    return {
        (sample.name, *(sample.labels[label] for label in FAMILIES[family.name].labels)): sample.value
        for family in families.metrics()
        for sample in family.samples
    }


def test_ill_applications_and_missing_replicas_are_told_by_name() -> None:
    series = ServeSeries(
        lambda: {
            "late": application("RUNNING", predictor={"RUNNING": 2}),
            "late-2": application("UNHEALTHY", predictor={"RUNNING": 1, "STARTING": 2, "STOPPING": 4}),
            "gateway": application("DEPLOY_FAILED", gateway={}),
            "new": application("DEPLOYING", proxy={"STARTING": 1}, predictor={"RECOVERING": 1, "RUNNING": 1}),
        }
    )
    assert samples(series) == {
        ("toque_head_up",): 1.0,
        ("toque_application_healthy", "late"): 1.0,
        ("toque_application_healthy", "late-2"): 0.0,
        ("toque_application_healthy", "gateway"): 0.0,
        ("toque_application_healthy", "new"): 1.0,
        ("toque_replicas_pending", "late", "predictor"): 0.0,
        ("toque_replicas_pending", "late-2", "predictor"): 2.0,
        ("toque_replicas_pending", "gateway", "gateway"): 0.0,
        ("toque_replicas_pending", "new", "proxy"): 1.0,
        ("toque_replicas_pending", "new", "predictor"): 1.0,
    }


def test_a_head_that_hangs_is_away_and_is_asked_by_one_thread_alone() -> None:
    answers, asked = threading.Event(), []

    def ask() -> dict[str, Any]:
        asked.append(threading.current_thread())
        answers.wait()
        return {}

    series = ServeSeries(ask, patience_s=0.02)
    begun = time.monotonic()
    assert [samples(series) for _ in range(5)] == [{("toque_head_up",): 0.0}] * 5
    assert time.monotonic() - begun < 5
    assert len(asked) == 1
    answers.set()
    asked[0].join()
    assert samples(ServeSeries(ask, patience_s=60)) == {("toque_head_up",): 1.0}


@pytest.mark.parametrize("failures", [1, 3])
def test_a_head_is_up_again_once_it_answers(failures: int) -> None:
    errors = [RuntimeError("the actor died")] * failures

    def ask() -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return {}

    series = ServeSeries(ask, patience_s=60)
    up = [samples(series)["toque_head_up",] for _ in range(failures + 1)]
    assert up == [0.0] * failures + [1.0]
