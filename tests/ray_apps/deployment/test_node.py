"""What a node is started with: its type's resources, the profile's variables, the head's Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from toque.clusters.profile import ProfileError, effective_profile
from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.deployment.node import NodeStart, node_environment, node_resources, ray_start
from toque.ray_apps.deployment.start_ray import PASSWORD

PLATFORM = {
    "TOQUE_STORE": "s3://bucket/toque",
    "TOQUE_REDIS_URL": "redis://toque:pass%2Fword@10.0.0.2:6380/0",
}
KUBERAY = "ray start --head --block --dashboard-host=10.0.0.1 --num-cpus=0 --resources='{\"x\":1}'"


def parsed(*more: str, **given: object) -> NodeStart:
    return NodeStart.parse(
        **{"head": False, "address": None, "kind": None, "block": False, "more": more, **given}  # type: ignore[arg-type]
    )


def command_of(node: NodeStart) -> list[str]:
    environment = node_environment(node, PLATFORM)
    return ray_start(node, effective_profile(environment), environment)


def option(command: list[str], name: str) -> str:
    found = [each.partition("=")[2] for each in command if each.startswith(f"--{name}=")]
    assert len(found) == 1, command
    return found[0]


def test_a_command_that_kuberay_made_is_taken_as_it_is() -> None:
    node = parsed(*KUBERAY.split(" "), kind="head")
    assert (node.is_head, node.block) == (True, True)
    command = command_of(node)
    assert option(command, "dashboard-host") == "10.0.0.1"
    assert option(command, "num-cpus") == "0"
    assert json.loads(option(command, "resources")) == {"door": 1000, "x": 1}


def test_nodes_that_serve_take_replicas_and_answer_clients_and_others_neither() -> None:
    assert set(node_resources(parsed(address="head", kind="serve"))) == {"serve", "door"}
    assert set(node_resources(parsed(head=True))) == {"door"}
    assert set(node_resources(parsed(head=True, kind="serve"))) == {"serve", "door"}
    assert node_resources(parsed(address="head", kind="gpu")) == {}


def test_a_head_schedules_and_runs_nothing_unless_it_serves() -> None:
    assert option(command_of(parsed(head=True)), "num-cpus") == "0"
    assert not [each for each in command_of(parsed(head=True, kind="serve")) if "num-cpus" in each]


def test_a_worker_joins_at_the_heads_port() -> None:
    assert option(command_of(parsed(address="10.0.0.4", kind="cpu")), "address") == "10.0.0.4:6379"
    assert option(command_of(parsed("--address=10.0.0.4:7000", kind="cpu")), "address") == "10.0.0.4:7000"


def test_the_head_keeps_what_it_knows_in_redis() -> None:
    node = parsed(head=True)
    environment = node_environment(node, PLATFORM | {"TOQUE_CLUSTER_NAME": "kitchen"})
    assert environment["RAY_REDIS_ADDRESS"] == "10.0.0.2:6380"
    assert environment["RAY_external_storage_namespace"] == "kitchen"
    command = command_of(node)
    assert option(command, "redis-username") == "toque"
    assert "RAY_REDIS_ADDRESS" not in node_environment(parsed(address="head", kind="cpu"), PLATFORM)


@pytest.mark.parametrize("more", [(), ("--redis-password=pass/word", "--no-monitor")])
def test_the_password_of_the_heads_redis_is_on_no_command_line(more: tuple[str, ...]) -> None:
    node = parsed(*more, head=True)
    environment = node_environment(node, PLATFORM)
    command = ray_start(node, effective_profile(environment), environment)
    assert not [argument for argument in command if "pass/word" in argument or "redis-password" in argument]
    assert ("--no-monitor" in command) == bool(more)
    assert environment[PASSWORD] == "pass/word"
    assert command[2] == "toque.ray_apps.deployment.start_ray"
    worker = parsed(address="head", kind="cpu")
    assert PASSWORD not in node_environment(worker, PLATFORM)


def test_ray_gets_the_password_from_the_environment_and_its_processes_do_not() -> None:
    program = (
        "import os, sys; from ray.scripts import scripts; from toque.ray_apps.deployment import start_ray\n"
        "scripts.cli = lambda arguments, prog_name: print(arguments, start_ray.PASSWORD in os.environ)\n"
        "start_ray.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "start", "--head"],
        env=os.environ | {PASSWORD: "pass/word"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['start', '--head', '--redis-password=pass/word'] False"


def test_a_redis_that_ray_cannot_use_is_refused_by_name() -> None:
    sentinel = PLATFORM | {"TOQUE_REDIS_URL": "redis+sentinel://a:26379,b:26379/0?service=main"}
    with pytest.raises(ProfileError, match=r"redis\.url: the head keeps .* name one in redis\.head_url"):
        node_environment(parsed(head=True), sentinel)
    own = sentinel | {"TOQUE_HEAD_REDIS_URL": "rediss://10.0.0.9:6379"}
    assert node_environment(parsed(head=True), own)["RAY_REDIS_ADDRESS"] == "rediss://10.0.0.9:6379"


def test_a_nodes_type_is_its_label() -> None:
    assert node_environment(parsed(address="head", kind="gpu"), PLATFORM)["RAY_NODE_TYPE_NAME"] == "gpu"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "either --head, or --address"),
        ({"head": True, "address": "x"}, "either --head, or --address"),
        ({"address": "x"}, "--type"),
    ],
)
def test_what_a_node_is_must_be_said(
    given: dict[str, object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_NODE_TYPE_NAME", raising=False)
    with pytest.raises(DeploymentError, match=named):
        parsed(**given)


def test_a_node_that_lacks_its_settings_does_not_start() -> None:
    with pytest.raises(ProfileError, match=r"redis\.url \(TOQUE_REDIS_URL\)"):
        node_environment(parsed(head=True), {"TOQUE_STORE": "s3://bucket/toque"})


def test_a_worker_gives_up_a_connection_to_a_head_that_vanished_and_the_head_waits_for_workers() -> None:
    """On a cluster whose head is lost: tests/cluster/test_head_loss.py; whose nodes are cut off: test_partitions.py."""
    setting = "RAY_grpc_client_keepalive_timeout_ms"
    assert node_environment(parsed(address="head", kind="serve"), PLATFORM)[setting] == "10000"
    assert setting not in node_environment(parsed(head=True), PLATFORM)
