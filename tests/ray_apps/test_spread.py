"""Replicas are laid out over nodes by what the cluster has, which here is a number that the test says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from toque.ray_apps import gateway, mlflow, ticker
from toque.ray_apps.predictor import (
    DedicatedOptions,
    PoolOptions,
    PredictorOptions,
    application,
    pool_application,
)
from toque.ray_apps.predictor.deploy.dedicated import version_application
from toque.ray_apps.predictor.grpc import ProxyOptions, grpc_application
from toque.ray_apps.serve.spread import NodePolicy, half_on_a_node, laid_out

STORE = "file:///nowhere"


def deployment_of(application: Any) -> Any:
    return application._bound_deployment


class Cluster:
    """Nodes that a policy finds, and a clock that the test moves."""

    def __init__(self, nodes: int) -> None:
        self.nodes: int | None = nodes
        self.now_s = 0.0

    def count(self, resource: str) -> int:
        if self.nodes is None:
            raise TimeoutError(f"the head does not say where {resource} is")
        return self.nodes

    def wanted(self, policy: NodePolicy, *, target: int = 1) -> int:
        """What the policy wants a moment later than asked before."""
        self.now_s += 2.0
        return policy(SimpleNamespace(target_num_replicas=target))[0]


def policy_of(cluster: Cluster, arguments: dict[str, Any]) -> NodePolicy:
    kwargs = AutoscalingConfig(**arguments["autoscaling_config"]).policy.policy_kwargs
    return NodePolicy(**kwargs, count=cluster.count, clock=lambda: cluster.now_s)


@pytest.mark.parametrize(("replicas", "most"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_no_node_has_more_than_half_of_the_replicas(replicas: int, most: int) -> None:
    arguments = half_on_a_node(replicas)
    assert arguments["max_replicas_per_node"] == most
    assert arguments["autoscaling_config"]["max_replicas"] == replicas


def test_a_single_node_has_its_half_and_nothing_waits_for_a_second_node() -> None:
    cluster = Cluster(nodes=1)
    policy = policy_of(cluster, half_on_a_node(4))
    assert cluster.wanted(policy) == 2
    cluster.nodes = 2
    assert cluster.wanted(policy) == 4


def test_nothing_moves_while_the_head_does_not_answer() -> None:
    cluster = Cluster(nodes=2)
    policy = policy_of(cluster, half_on_a_node(2))
    assert cluster.wanted(policy) == 2
    cluster.nodes = None
    assert cluster.wanted(policy, target=2) == 2
    cluster.nodes = 0  # a head that starts anew knows no node for a moment
    assert cluster.wanted(policy, target=2) == 2


def test_nodes_are_counted_once_a_second_and_not_at_each_of_serves_ten_calls() -> None:
    asked: list[str] = []

    def count(resource: str) -> int:
        asked.append(resource)
        return 1

    now_s = [0.0]
    policy = NodePolicy("door", 1, count=count, clock=lambda: now_s[0])
    for _ in range(10):
        policy(SimpleNamespace(target_num_replicas=1))
        now_s[0] += 0.125
    assert asked == ["door"] * 2


BUILDERS: dict[str, Callable[[bool], Any]] = {
    "gateway": lambda on: gateway.application({"num_replicas": 2, "on_serve_nodes": on}),
    "mlflow": lambda on: mlflow.application({"num_replicas": 2, "on_serve_nodes": on}),
    "ticker": lambda on: ticker.application({"num_replicas": 2, "on_serve_nodes": on}),
    "model": lambda on: application(
        "late", PredictorOptions(store_url=STORE, num_replicas=2, on_serve_nodes=on)
    ),
    "pool": lambda on: pool_application(PoolOptions(store_url=STORE, on_serve_nodes=on)),
    "version": lambda on: version_application(
        "late",
        1,
        PredictorOptions(
            store_url=STORE,
            on_serve_nodes=on,
            dedicated=DedicatedOptions(min_replicas=2, max_replicas=2),
        ),
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_two_replicas_of_what_must_not_stop_are_on_two_nodes_that_serve(name: str) -> None:
    deployment = deployment_of(BUILDERS[name](True))
    assert deployment._replica_config.max_replicas_per_node == 1
    assert deployment._replica_config.resource_dict["serve"] > 0
    assert deployment._deployment_config.autoscaling_config.max_replicas == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_a_single_machine_has_both_replicas_and_needs_no_resource(name: str) -> None:
    deployment = deployment_of(BUILDERS[name](False))
    assert deployment._replica_config.max_replicas_per_node is None
    assert "serve" not in deployment._replica_config.resource_dict
    assert deployment.num_replicas == 2


def test_a_version_on_a_gpu_goes_where_gpus_are() -> None:
    options = PredictorOptions(
        store_url=STORE, on_serve_nodes=True, dedicated=DedicatedOptions(num_gpus=1, max_replicas=1)
    )
    found = deployment_of(version_application("large", 1, options))._replica_config.resource_dict
    assert found["GPU"] == 1
    assert "serve" not in found


def test_a_deployment_that_is_scaled_by_traffic_keeps_its_policy() -> None:
    scaled = PredictorOptions(store_url=STORE, max_replicas=4, on_serve_nodes=True)
    deployment = deployment_of(application("late", scaled))
    assert deployment._replica_config.resource_dict["serve"] > 0
    assert deployment._deployment_config.autoscaling_config.policy.policy_kwargs == {
        "target_latency_ms": None
    }


def test_what_a_deployment_asks_for_itself_stays() -> None:
    asked = {"ray_actor_options": {"num_cpus": 2, "resources": {"fast-disk": 1}}, "on_serve_nodes": True}
    actor = laid_out(asked)["ray_actor_options"]
    assert actor["num_cpus"] == 2
    assert set(actor["resources"]) == {"fast-disk", "serve"}


@pytest.mark.parametrize(
    ("options", "surge"),
    [
        ({"num_replicas": 1}, 100),
        ({"num_replicas": 2}, 100),
        ({"on_serve_nodes": True, "num_replicas": 1}, 100),
        ({"on_serve_nodes": True, "num_replicas": 2}, 0),  # a successor has no room beside its predecessor
        ({"on_serve_nodes": True, "autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}, 100),
    ],
)
def test_a_replica_answers_until_its_successor_does_where_both_have_room(
    options: dict[str, Any], surge: int
) -> None:
    deployment = deployment_of(gateway.application(options))
    assert deployment._deployment_config.max_surge_percent == surge
    limit = deployment._replica_config.max_replicas_per_node
    assert (surge == 0) == (limit is not None)


def test_a_single_grpc_server_listens_until_the_next_one_does() -> None:
    options = ProxyOptions(url="http://127.0.0.1:8000", store_url=STORE)
    assert deployment_of(grpc_application(options))._deployment_config.max_surge_percent == 100


def test_each_node_with_a_door_has_one_grpc_server() -> None:
    options = ProxyOptions(url="http://127.0.0.1:8000", store_url=STORE, host="0.0.0.0", on_each_door=True)  # noqa: S104
    deployment = deployment_of(grpc_application(options))
    assert deployment._replica_config.max_replicas_per_node == 1
    assert deployment._replica_config.resource_dict["door"] > 0
    cluster = Cluster(nodes=3)
    arguments = {"autoscaling_config": deployment._deployment_config.autoscaling_config.model_dump()}
    policy = policy_of(cluster, arguments)
    assert cluster.wanted(policy) == 3
    cluster.nodes = 4
    assert cluster.wanted(policy) == 4
