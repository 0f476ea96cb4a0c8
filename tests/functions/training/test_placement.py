"""Nodes that serve take no training: a cluster of one that is named so, with room for all, and one that is not."""

from collections.abc import Iterator

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from functions.batch_inference import predict_batch
from functions.training import train_tabular
from functions.tuning import tune_tabular
from tests.functions.training.kitchen import FAST, NAMES

pytestmark = [pytest.mark.ray, pytest.mark.proof]
TRAINING = {
    "RayTrainWorker": "workers",
    "_Inner": "trials, in Tune's wrapper",
    "MapWorker": "the pool of a batch inference",
}


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "serve")  # as autoscaler and KubeRay do, by the name of the type
    cluster.add_node(num_cpus=16)
    monkeypatch.delenv("RAY_NODE_TYPE_NAME")
    cluster.add_node(num_cpus=4)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_a_node_that_serves_takes_no_training_sweep_or_batch_inference(kitchen, training_set):
    (serving,) = (
        node["NodeID"] for node in ray.nodes() if node["Labels"].get("ray.io/node-group") == "serve"
    )
    trained = train_tabular("late", training_set, **NAMES, params=FAST, num_workers=2)
    tune_tabular("late", training_set, **NAMES, params=FAST, num_samples=2)
    predict_batch("late", training_set, version=trained.version)
    found = {}
    for actor in actors().values():
        for kind in TRAINING:
            if kind in actor["ActorClassName"]:
                found.setdefault(kind, set()).add(actor["Address"]["NodeID"])
    assert found.keys() == TRAINING.keys(), {actor["ActorClassName"] for actor in actors().values()}
    assert all(serving not in nodes for nodes in found.values()), found
    where = train_tabular.submit("late", training_set, **NAMES, params=FAST)
    assert where.result(200).version == 2
