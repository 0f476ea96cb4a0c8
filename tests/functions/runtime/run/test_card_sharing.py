"""Parts of a card and slices of one on a Ray cluster: who gets which, what it counts as, and the joules in its receipt.

It wants a process of its own: after an executor has run on another cluster in this one, its invocations do not end.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.functions.runtime.cards.fake_driver import WATTS, fake_driver
from tests.functions.runtime.run.polled import polled_executor
from tests.waiting import until
from toque.functions import Context, Demand, function
from toque.functions.quotas import admissions, set_quota
from toque.functions.runtime.run.room import cards

pytestmark = [
    pytest.mark.ray,
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here for the cards' driver"),
]
SLICE = "H100-3g.40gb"
HELD_S = 2.0


def on_a_card(gpus: float, card: str | None = None, **_: object) -> Demand:
    return Demand(gpus=gpus, workers=1, card=card)


@function(timeout_s=None, demand=on_a_card)
def hold(folder: str, number: int, beside: int, gpus: float, card: str | None = None) -> str:
    """Hold what was asked for beside so many others, then for two seconds more; returns what CUDA would see."""
    Path(folder, str(number)).touch()
    while len(list(Path(folder).iterdir())) < beside:
        time.sleep(0.02)
    time.sleep(HELD_S)  # whose joules are counted
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of a node with one card, and one whose card is cut into two slices, each by what its driver says."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fake_driver(tmp_path_factory.mktemp("whole"), cards=1).items():
            patch.setenv(name, value)
        cluster.add_node(num_cpus=4, num_gpus=1, labels={"ray.io/accelerator-type": "H100"})
    with pytest.MonkeyPatch.context() as patch:
        cut = fake_driver(tmp_path_factory.mktemp("cut"), cards=1, slices="3g.40gb,3g.40gb")
        for name, value in (cut | {"CUDA_VISIBLE_DEVICES": "MIG-fake-0-0,MIG-fake-0-1"}).items():
            patch.setenv(name, value)
        labels = {"ray.io/accelerator-type": SLICE, "toque/slices": "yes"}
        cluster.add_node(num_cpus=4, num_gpus=2, labels=labels)
    ray.init(cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def used(nodes: None, tmp_path: Path) -> Iterator[Context]:
    with polled_executor(tmp_path) as context:
        yield context


def test_two_halves_share_a_card_at_a_time_and_each_pays_for_its_own(used: Context, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    folder.mkdir()
    halves = [hold.submit(str(folder), number, beside=2, gpus=0.5) for number in range(2)]
    until(lambda: all(each.status() == "succeeded" for each in halves), told=admissions, within_s=300)
    for each in halves:
        assert each.result(1) == "0"  # of the node with the whole card, though another has room for both
        receipt = each.record().receipt
        assert receipt is not None
        assert receipt.gpu_s == pytest.approx(receipt.run_s / 2, abs=0.01)
        assert receipt.energy_j == pytest.approx(WATTS * receipt.gpu_s, rel=0.05)


def test_a_slice_is_had_by_who_asks_for_it_and_counts_as_its_part_of_a_card(
    used: Context, tmp_path: Path
) -> None:
    assert sorted((each.card, round(each.gpus, 4)) for each in cards() or ()) == [
        ("H100", 1.0),
        (SLICE, 0.8571),
    ]
    set_quota("ada", gpus=1)  # 6/7 of a card: two slices, and no card beside them
    folder = tmp_path / "held"
    folder.mkdir()
    slices = [hold.submit(str(folder), number, beside=2, gpus=1, card=SLICE) for number in range(2)]
    until(lambda: len(list(folder.iterdir())) == 2, told=admissions, within_s=300)
    whole = hold.submit(str(folder), 2, beside=2, gpus=1)
    until(lambda: whole.status() == "succeeded", told=admissions, within_s=300)
    assert sorted(each.result(1) for each in slices) == ["MIG-fake-0-0", "MIG-fake-0-1"]
    assert whole.result(1) == "0"
    began, ended = whole.record().started_at, [each.record().finished_at for each in slices]
    assert began is not None
    assert any(each is not None and each <= began for each in ended)  # its quota had no room for three
    for each in slices:
        receipt = each.record().receipt
        assert receipt is not None
        assert receipt.gpu_s == pytest.approx(receipt.run_s * 3 / 7, abs=0.01)
        assert receipt.energy_j == pytest.approx(WATTS * receipt.gpu_s, rel=0.05)
