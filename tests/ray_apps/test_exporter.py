"""The gateway's view of all nodes: their exporters are asked, and one that does not answer is named."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from toque.clusters.telemetry.metrics import parse
from toque.ray_apps.exporter import ClusterMetrics

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def up_of(text: bytes) -> dict[str, float]:
    """Which nodes are here, by address."""
    family = next(each for each in parse(text) if each.name == "toque_exporter_up")
    return {each.labels["node"]: each.value for each in family.samples}


def test_exporters_of_other_nodes_are_asked_and_absent_ones_named(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ray.get_runtime_context()
    here, nodes = context.get_node_id(), {"f" * 56: "10.255.0.9"}
    cluster = ClusterMetrics(f"file://{tmp_path}/store", nodes=lambda: nodes)
    # This node has the part of another one: its own id is the only one where Ray can start an exporter.
    monkeypatch.setattr("toque.ray_apps.exporter._own_node", lambda: ("0" * 56, "10.255.0.1"))
    nodes[here] = "10.255.0.2"
    for _ in range(10):  # the first answer may come later than it is waited for
        text = cluster.text()
        if up_of(text)["10.255.0.2"]:
            break
    assert up_of(text) == {"10.255.0.1": 1.0, "10.255.0.2": 1.0, "10.255.0.9": 0.0}
    roles = next(each for each in parse(text) if each.name == "toque_processes").samples
    assert {"role": "exporter", "node": "10.255.0.2"} in [each.labels for each in roles]
    ray.kill(ray.get_actor(f"toque-exporter-{here}", namespace="toque"))
    found = [up_of(cluster.text())["10.255.0.2"] for _ in range(10)]
    assert found[-1] == 1.0  # it was started again
