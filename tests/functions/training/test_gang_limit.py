"""A gang saves before its declared limit, and goes on there when it is submitted again, with the losses of an undisturbed one.

It wants a process of its own, as `test_gangs` does.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.functions.runtime.run.polled import polled_executor
from tests.functions.training.gangs import train_gang
from tests.functions.training.recipes import FAST
from tests.functions.training.test_gangs import curves
from tests.waiting import until
from toque.functions import Context
from toque.functions.quotas import admissions
from toque.functions.training import train_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.proof,
    pytest.mark.timeout(1800),  # two groups of workers start
]
EPOCHS, LIMIT_S = 100, 200.0  # busy cores take more than a minute until workers of Ray train


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Context]:
    ray.init("local", num_cpus=4, num_gpus=2, labels={"ray.io/accelerator-type": "H100"}, log_to_driver=False)
    with polled_executor(tmp_path, project="tests.functions.training.recipes") as context:
        yield context
    ray.shutdown()


def test_a_gang_saves_before_its_limit_and_goes_on_there(queue: Context, tmp_path: Path) -> None:
    pace = tmp_path / "pace"
    pace.write_text("0.5")  # eight of them an epoch: longer than the limit
    limited = train_gang.submit("long", pace_file=str(pace), epochs=EPOCHS, limit_s=LIMIT_S)
    until(lambda: limited.status() == "dead", told=admissions, within_s=600)
    record = limited.record()
    assert record.failure is not None
    assert "has reached limit_s=200 and saved its state" in record.failure.message
    assert record.receipt is not None
    assert (record.receipt.limit_s, record.receipt.timed_out) == (LIMIT_S, True)
    pace.write_text("0")
    again = train_gang.submit("long", pace_file=str(pace), epochs=EPOCHS)
    until(lambda: again.status() == "succeeded", told=admissions, within_s=600)
    before, after = curves(queue, "long")
    assert 0 < len(before) < EPOCHS
    assert {epoch: after[epoch] for epoch in before} == before  # told again as they were: not trained anew
    train_recipe("alone", "sums", params=FAST.model_copy(update={"epochs": EPOCHS}))
    assert after == pytest.approx(curves(queue, "alone")[0], abs=1e-4)
