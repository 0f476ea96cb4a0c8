"""The label of a node says the type that was asked for, whatever the autoscaler calls its machine."""

from __future__ import annotations

from ray._private.label_utils import parse_node_labels_string

from toque.clusters.profile import Profile
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.ray_apps.deployment.node import NodeStart, ray_start


def labels_of(node: NodeStart, autoscalers_name: str) -> dict[str, str]:
    command = ray_start(node, Profile(), {"RAY_NODE_TYPE_NAME": autoscalers_name})
    said = [each.partition("=")[2] for each in command if each.startswith("--labels=")]
    assert len(said) <= 1
    return parse_node_labels_string(said[0]) if said else {}


def test_a_machine_of_a_list_gets_the_label_of_its_type():
    (key,) = AWAY_FROM_SERVING
    assert labels_of(NodeStart("10.0.0.10", "serve"), "local.cluster.node") == {key: "serve"}
    assert labels_of(NodeStart("10.0.0.10", "cpu"), "local.cluster.node") == {key: "cpu"}


def test_a_type_that_the_autoscaler_knows_needs_no_label_and_a_given_one_stays():
    assert labels_of(NodeStart("10.0.0.10", "serve"), "serve") == {}
    given = NodeStart("10.0.0.10", "serve", more=("--labels=ray.io/node-group=serve,team=a",))
    assert labels_of(given, "other") == {"ray.io/node-group": "serve", "team": "a"}
