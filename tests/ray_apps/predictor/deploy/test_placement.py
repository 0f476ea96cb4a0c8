"""Number and placement of replicas: options, a project's placements, and what is deployed for them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from ray import serve

from functions.placement import Placement
from ray_apps.local.deploying import targets
from ray_apps.predictor import PoolOptions, PredictorOptions, application, pool_application

STORE = "file:///tmp/nowhere"


def deployment_of(found: serve.Application) -> Any:
    return found._bound_deployment


def test_a_fixed_number_of_replicas_is_the_default():
    options = PredictorOptions(store_url=STORE)
    assert options.scale == {"num_replicas": 1}
    assert deployment_of(application("late", options)).num_replicas == 1
    assert deployment_of(pool_application(PoolOptions(store_url=STORE))).num_replicas == 2


def test_a_model_may_go_to_zero_once_nobody_asks():
    options = PredictorOptions(store_url=STORE, min_replicas=0, max_replicas=3, idle_s=60)
    config = deployment_of(application("late", options))._deployment_config.autoscaling_config
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 3)
    assert config.downscale_to_zero_delay_s == 60


def test_more_replicas_at_least_than_at_most_are_refused():
    with pytest.raises(ValidationError, match="min_replicas=4 is more than max_replicas=3"):
        PredictorOptions(store_url=STORE, min_replicas=4, max_replicas=3)
    with pytest.raises(ValidationError, match="min_replicas=2 is more than max_replicas=1"):
        Placement(min_replicas=2)


def test_models_are_deployed_where_their_project_places_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_STORE", STORE)
    placed = {
        "alone": Placement(),
        "two": Placement(min_replicas=2, max_replicas=2),
        "sometimes": Placement(min_replicas=0, max_replicas=2, target_latency_ms=40),
        "small": Placement(pool=True),
        "tiny": Placement(pool=True),
    }
    found = {one.name: one for one in targets(placed)}
    assert {one.route_prefix for one in found.values()} == {
        "/", "/api", None, "/v2/models/alone", "/v2/models/two", "/v2/models/sometimes", "/v2/models",
    }  # fmt: skip
    assert deployment_of(found["predictor-two"].target).num_replicas == 2
    sometimes = deployment_of(found["predictor-sometimes"].target)._deployment_config
    assert sometimes.autoscaling_config.min_replicas == 0
    assert sometimes.autoscaling_config.policy.policy_kwargs == {"target_latency_ms": 40}
    assert "pool" not in {one.name for one in targets({"alone": Placement()})}
