"""Submissions bring cards from nothing, all end though a node is lost, receipts tell the truth, and the cards leave."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functions.runtime.run.autoscaled import Autoscaled, autoscaled
from tests.functions.runtime.run.polled import polled_executor
from tests.waiting import until
from toque.functions import Context, Demand, Retries, function
from toque.functions.quotas import set_quota
from toque.functions.runtime.run.room import cards

pytestmark = [pytest.mark.ray, pytest.mark.proof]
TYPES = {"gpu": ({"CPU": 1, "GPU": 1}, 4)}
RUNS, RUN_S = 8, 60.0
LOSES_S = 6.0  # a killed run's receipt ends with its last heartbeat, five seconds before at most


@function(
    timeout_s=None, retries=Retries(max_lost=9, backoff_s=0.1), demand=lambda **_: Demand(gpus=1, workers=1)
)
def hold_a_card(folder: str, number: int) -> int:
    """Hold a card for a minute, and leave in a file for how long this process did."""
    begun, held_s = time.monotonic(), 0.0
    file = Path(folder, f"{number}-{begun}")
    while held_s < RUN_S:
        time.sleep(0.05)
        held_s = time.monotonic() - begun
        file.write_text(repr(held_s))
    return number


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Autoscaled]:
    with autoscaled(tmp_path, TYPES) as running:
        yield running


@pytest.fixture
def used(tmp_path: Path, cluster: Autoscaled) -> Iterator[Context]:
    """Run an executor on the cluster, which is there before it."""
    assert cluster.nodes() == {}
    with polled_executor(tmp_path) as context:
        yield context


def test_cards_come_and_go_with_the_queue_and_receipts_say_for_how_long_they_were_held(
    cluster: Autoscaled, used: Context, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    set_quota("everyone", gpus=4)
    assert {each.coming for each in cards() or ()} == {True}
    submitted = [hold_a_card.submit(str(held), number) for number in range(RUNS)]
    cluster.until(lambda nodes: len(nodes) == 4, within_s=600)
    until(lambda: len(list(held.iterdir())) == 4, within_s=600)
    lost = next(iter(cluster.nodes()))
    cluster.lose(lost)
    until(lambda: all(each.record().ended for each in submitted), within_s=1800)
    records = [each.record() for each in submitted]
    assert [each.status for each in records] == ["succeeded"] * RUNS
    assert sum(each.lost for each in records) >= 1
    truth = sum(float(each.read_text()) for each in held.iterdir())
    told = sum(each.receipt.gpu_s for each in records if each.receipt)
    assert len(list(held.iterdir())) > RUNS  # what the lost ones held is part of the truth
    assert told == pytest.approx(truth, rel=0.02)
    for record in records:
        own = sum(float(each.read_text()) for each in held.glob(f"{submitted_number(record.arguments)}-*"))
        assert record.receipt is not None
        assert record.receipt.gpu_s == pytest.approx(own, rel=0.02, abs=LOSES_S * record.lost)
    cluster.until(lambda nodes: not nodes, within_s=600)


def submitted_number(arguments: dict[str, object]) -> int:
    """Number of a submission, which is among its arguments."""
    given = arguments["json"]
    assert isinstance(given, dict)
    return int(given["number"])
