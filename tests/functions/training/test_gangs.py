"""A gang on two nodes yields its cards to a more urgent one at a checkpoint, and goes on after it as if nothing had been.

It wants a process of its own: after an executor has run on another cluster in this one, its invocations do not end.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.functions.runtime.run.polled import polled_executor
from tests.functions.training.gangs import train_gang
from tests.functions.training.recipes import FAST
from tests.waiting import until
from toque.functions import Context
from toque.functions.quotas import admissions
from toque.functions.runtime.run.room import cards
from toque.functions.training import train_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.proof,
    pytest.mark.timeout(1800),  # three groups of workers start
]
STEP_S, STEPS, EPOCHS = 0.5, 8, 8  # what is left after the first epoch takes longer than to be told to yield


@pytest.fixture
def two_cards() -> Iterator[None]:
    """A cluster with a card on each of two nodes."""
    node = {"num_cpus": 2, "num_gpus": 1, "labels": {"ray.io/accelerator-type": "H100"}}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def queue(two_cards: None, tmp_path: Path) -> Iterator[Context]:
    with polled_executor(tmp_path, project="tests.functions.training.recipes") as context:
        yield context


def curves(context: Context, model: str) -> list[dict[int, float]]:
    """Validation losses by epoch of each run of a model, the first run first."""
    registry = context.registry()
    runs = sorted(registry.search_runs(model), key=lambda run: run.started_at)
    return [
        {point.step: point.value for point in registry.get_run(run.id).series("valid_loss")} for run in runs
    ]


def test_a_gang_yields_at_a_checkpoint_and_ends_with_the_loss_of_an_undisturbed_one(queue: Context) -> None:
    assert [(each.gpus, each.card) for each in cards() or ()] == [(1, "H100")] * 2
    long = train_gang.submit("long", step_s=STEP_S, epochs=EPOCHS)
    until(lambda: curves(queue, "long") and curves(queue, "long")[0], told=admissions, within_s=600)
    urgent = train_gang.submit("urgent", step_s=0.0, epochs=1, priority=5)
    until(lambda: urgent.status() == "succeeded", told=admissions, within_s=600)
    assert long.record().preemptions == 1  # it gave its cards, and had not ended
    assert long.status() != "succeeded"
    until(lambda: long.status() == "succeeded", told=admissions, within_s=600)
    record = long.record()
    assert (record.preemptions, record.lost) == (1, 0)

    before, after = curves(queue, "long")
    assert 0 < len(before) < EPOCHS
    assert sorted(after) == list(range(EPOCHS))  # those of before are told again, as they were
    assert {epoch: after[epoch] for epoch in before} == before
    train_recipe("alone", "sums", params=FAST.model_copy(update={"epochs": EPOCHS}))
    assert after == pytest.approx(curves(queue, "alone")[0], abs=1e-4)
    for each, held_s in ((long, 2 * EPOCHS * STEPS * STEP_S), (urgent, 0.0)):
        receipt = each.record().receipt
        assert receipt is not None
        assert held_s < receipt.gpu_s <= 2 * receipt.run_s + 1  # both cards, in both attempts
