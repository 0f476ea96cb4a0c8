"""What Prometheus sees of a model's requests, once they are flushed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.ray_apps.predictor.deploy.pool import connect
from toque.ray_apps.predictor.inference import live
from toque.ray_apps.predictor.inference.live import ModelSeries, error_class


class Seen:
    """Series of one model, under a workspace of its own among all tests of this process."""

    def __init__(self) -> None:
        self.workspace = f"w{uuid.uuid4().hex[:12]}"
        self.series = ModelSeries("late", self.workspace)

    def __call__(self, name: str, **labels: str) -> float:
        self.series.flush()
        found = {"workspace": self.workspace, "model": "late", **labels}
        return REGISTRY.get_sample_value(f"toque_predictor_{name}", found) or 0.0


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def served(make_served_model: Callable[..., ServedModel], seen: Seen) -> ServedModel:
    made = make_served_model(series=seen.series)
    made.registry.promote("late", made.version())
    made.refresh()
    return made


def fail(served: ServedModel, version: int) -> None:
    loaded: Any = served.engine.find(version)
    loaded._scorer.fail = "predict"


async def test_requests_errors_and_latency_are_told_by_version_and_arm(
    served: ServedModel, seen: Seen
) -> None:
    bad = served.version()
    served.registry.set_traffic("late", {"canary": (bad, 0.5)})
    served.refresh()
    fail(served, bad)
    statuses = [
        (await served.infer(tensors(parameters={"unit": f"u{number}"}))).status_code for number in range(40)
    ]
    champion, canary = {"version": "1", "arm": "champion"}, {"version": str(bad), "arm": "canary"}
    assert 0 < statuses.count(500) < 40
    assert seen("requests_total", **champion) == statuses.count(200)
    assert seen("requests_total", **canary) == statuses.count(500)
    assert seen("errors_total", **canary, **{"class": "fault"}) == statuses.count(500)
    assert seen("latency_seconds_count", **champion) == statuses.count(200)
    assert seen("latency_seconds_bucket", le="+Inf", **champion) == statuses.count(200)
    assert seen("latency_seconds_count", **canary) == 0.0  # an error's time says nothing about answers


async def test_every_response_of_the_endpoint_counts_by_status(
    make_served_model: Callable[..., ServedModel], seen: Seen
) -> None:
    made = make_served_model(series=seen.series)
    transport: Any = made.client._transport
    connect(transport.app)
    assert (await made.infer()).status_code == 503  # no version yet
    made.registry.promote("late", made.version())
    made.refresh()
    assert (await made.infer()).status_code == 200
    assert (await made.client.post("/infer", json={}, headers={"Authorization": "x"})).status_code == 401
    for status in ("200", "401", "503"):
        assert seen("responses_total", status=status) == 1.0
    assert seen("in_flight") == 0.0
    assert seen("loads_total", outcome="loaded") == 1.0
    assert seen("loaded_versions") == 1.0
    assert seen("logged_total", outcome="written") == 1.0
    await made.predictor.close()
    assert seen("loaded_versions") == 0.0
    assert seen("responses_total", status="200") == 1.0


async def test_shadows_count_by_what_became_of_them(served: ServedModel, seen: Seen) -> None:
    shadow = served.version()
    served.registry.set_traffic("late", {}, shadows=[shadow])
    served.refresh()
    transport: Any = served.client._transport
    connect(transport.app)
    for _ in range(3):
        await served.infer()
    await served.predictor.shadows.drained()
    assert seen("shadows_total", outcome="scored") == 3.0


def test_models_beyond_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_models", live.Bounded(2))
    made = [ModelSeries(f"m{number}", "bounded") for number in range(5)]
    assert [each.labels for each in made] == [("bounded", "m0"), ("bounded", "m1"), *[("other", "other")] * 3]
    for each in made:
        each.of(1, "champion").answered(0.01, usable=True)
        each.flush()
    labels = {"workspace": "other", "model": "other", "version": "1", "arm": "champion"}
    assert REGISTRY.get_sample_value("toque_predictor_requests_total", labels) == 3.0


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "refused"),
        (429, "overloaded"),
        (499, "gone"),
        (500, "fault"),
        (503, "not_ready"),
        (504, "timeout"),
    ],
)
def test_classes_of_errors_tell_whose_fault_it_was(status: int, name: str) -> None:
    assert error_class(status) == name
