"""Nodes that serve take no training: a cluster of one that is named so, with room for all, and one that is not."""

from collections.abc import Iterator

import pytest
import ray
from ray._private.label_utils import parse_node_labels_string  # what `ray start --labels` reads
from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.functions.training.tabular_setup import FAST, NAMES
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.training import train_tabular
from toque.functions.tuning.jobs import tune_tabular

pytestmark = [pytest.mark.ray, pytest.mark.proof]
TRAINING = {  # what the actors that compute are called in Ray; Tune wraps a trial twice
    "workers": ("RayTrainWorker",),
    "trials": ("ResourceTrainable", "_Inner", "SweepTrial"),
    "the pool of a batch inference": ("MapWorker",),
}


@pytest.fixture(params=["type", "labels"])
def two_nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    if request.param == "type":
        monkeypatch.setenv("RAY_NODE_TYPE_NAME", "serve")  # as `toque node start`, autoscaler and KubeRay do
        cluster.add_node(num_cpus=16)
        monkeypatch.delenv("RAY_NODE_TYPE_NAME")
    else:
        cluster.add_node(num_cpus=16, labels=parse_node_labels_string("ray.io/node-group=serve"))
    cluster.add_node(num_cpus=4)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_a_node_that_serves_takes_no_training_sweep_or_batch_inference(context, training_set):
    (serving,) = (
        node["NodeID"] for node in ray.nodes() if node["Labels"].get("ray.io/node-group") == "serve"
    )
    trained = train_tabular("late", training_set, **NAMES, params=FAST, num_workers=2)
    tune_tabular("late", training_set, **NAMES, params=FAST, num_samples=2)
    predict_batch(
        "late", training_set, version=trained.version, shard_rows=100
    )  # several: one is scored here
    where = [(actor["ActorClassName"], actor["Address"]["NodeID"]) for actor in actors().values()]
    found = {
        kind: {node for name, node in where if any(each in name for each in names)}
        for kind, names in TRAINING.items()
    }
    assert all(found.values()), "; ".join(sorted({name for name, _ in where}))
    assert all(serving not in nodes for nodes in found.values()), found
    submitted = train_tabular.submit("late", training_set, **NAMES, params=FAST)
    assert submitted.result(900).version == 2
