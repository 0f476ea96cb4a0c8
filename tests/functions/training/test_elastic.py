"""A group of workers that shrinks when a node is lost or slow, and grows when another one comes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.functions.training.recipes import FAST
from tests.waiting import until
from toque.functions import use_context
from toque.functions.runtime.run import room
from toque.functions.training import train_recipe
from toque.functions.training.loop import distributed
from toque.functions.training.loop import distributed as slow_workers

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


class Training:
    """Training on the cluster beside the test, with the sizes that its group had."""

    def __init__(self, project, pool, params, **arguments: Any) -> None:
        self.project = project

        def train():
            with use_context(project):
                return train_recipe("many", "sums", params=params, **arguments)

        self.result = pool.submit(train)
        until(lambda: project.registry().search_runs("many", "") or self.result.done(), within_s=900)
        (self.run,) = (found.id for found in project.registry().search_runs("many", ""))

    def see(self, *wanted: float):
        """Wait until the group had these sizes, one after the other, and trains on."""
        until(
            lambda: sizes(self.project, self.run) == [*wanted] or self.result.done(),
            lambda: str(sizes(self.project, self.run)),
            within_s=900,
        )
        assert not self.result.done(), sizes(self.project, self.run)

    def check(self, alone, *wanted: float):
        """Wait for the end; the group had these sizes, and the losses are those of a run alone."""
        trained = self.result.result(timeout=1_200)
        assert sizes(self.project, self.run) == [*wanted]
        curves = [dict(series(self.project, each.run_id, "valid_loss")) for each in (alone, trained)]
        assert len(curves[0]) == LONG.epochs
        assert curves[1] == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.timeout(2_400)
def test_a_group_goes_on_smaller_without_a_lost_node_and_larger_with_a_new_one(context, cluster):
    with use_context(replace(context, project="tests.functions.training.recipes")) as project:
        alone = train_recipe("alone", "sums", params=LONG)
        with ThreadPoolExecutor(1) as pool:
            training = Training(project, pool, LONG, options={"step_s": 0.3}, num_workers=2, min_workers=1)
            training.see(2.0)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            training.see(2.0, 1.0)
            cluster.add_node(num_cpus=1)
            training.check(alone, 2.0, 1.0, 2.0)


@pytest.mark.timeout(2_400)
def test_a_group_goes_on_without_a_slow_node_and_never_grows_onto_it_again(context, cluster, monkeypatch):
    for name in ("_EVERY", "seconds_of_product"):  # which the recipe sets
        monkeypatch.setattr(slow_workers, name, getattr(slow_workers, name))
    slow = cluster.add_node(num_cpus=1).node_id
    params = LONG.model_copy(update={"batch_size": 48})  # even for two workers and for three
    with use_context(replace(context, project="tests.functions.training.recipes")) as project:
        alone = train_recipe("alone", "sums", params=params)
        with ThreadPoolExecutor(1) as pool:
            training = Training(
                project, pool, params, options={"step_s": 0.3, "slow_node": slow}, num_workers=3,
                min_workers=2, slow_workers="leave",
            )  # fmt: skip
            training.see(3.0, 2.0)
            cluster.add_node(num_cpus=1)
            training.check(alone, 3.0, 2.0, 3.0)
