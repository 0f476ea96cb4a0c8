"""A group of workers that shrinks when a node is lost, and grows when another one comes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster

from functions import use_context
from functions.runtime.run import room
from functions.training import train_recipe
from functions.training.loop import distributed
from tests.functions.training.recipes import FAST
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.proof]
LONG = FAST.model_copy(update={"epochs": 40})


@pytest.fixture
def cluster(monkeypatch):
    """Nodes of a CPU each beside a head without any; groups settle and last for a moment only."""
    monkeypatch.setattr(room, "_SETTLED_S", 3.0)
    monkeypatch.setattr(distributed, "_LASTING_S", 1.0)
    made = Cluster()
    made.add_node(num_cpus=0, include_dashboard=False)
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


def series(context, run, name):
    """Values of a metric by epoch, in the order in which they were logged."""
    return [(point.step, point.value) for point in context.registry().get_run(run).series(name)]


def sizes(context, run):
    """Sizes that the group had, one after the other; of an epoch that was trained twice the last."""
    by_epoch = dict(series(context, run, "workers"))
    found = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    return [size for size, before in zip(found, [None, *found], strict=False) if size != before]


@pytest.mark.timeout(2_400)
def test_a_group_goes_on_smaller_without_a_lost_node_and_larger_with_a_new_one(context, cluster):
    with use_context(replace(context, project="tests.functions.training.recipes")) as project:
        alone = train_recipe("alone", "sums", params=LONG)

        def train():
            with use_context(project):
                return train_recipe(
                    "many", "sums", options={"step_s": 0.3}, params=LONG, num_workers=2, min_workers=1
                )

        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(train)
            until(lambda: project.registry().search_runs("many", "") or training.done(), within_s=900)
            (run,) = (found.id for found in project.registry().search_runs("many", ""))

            def seen(*wanted: float):
                until(
                    lambda: sizes(project, run) == [*wanted] or training.done(),
                    lambda: str(sizes(project, run)),
                    within_s=900,
                )
                assert not training.done()

            seen(2.0)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            seen(2.0, 1.0)
            cluster.add_node(num_cpus=1)
            trained = training.result(timeout=1_200)
    assert sizes(project, run) == [2.0, 1.0, 2.0]
    curves = [dict(series(project, each.run_id, "valid_loss")) for each in (alone, trained)]
    assert len(curves[0]) == LONG.epochs
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    took = set(series(project, run, "epoch_s"))  # what is only told of again took as long to the microsecond
    assert len(took) - LONG.epochs <= 1  # of the lost group an epoch at most
    assert list(project.store.list("checkpoints/")) == []
