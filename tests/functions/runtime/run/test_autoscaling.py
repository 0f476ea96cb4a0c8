"""Nodes come when work waits for them, and leave after it: with Ray's own autoscaler, from nothing to nothing."""

import time
from collections.abc import Iterator

import pytest
import ray

from tests.functions.runtime.run.autoscaled import Autoscaled, answer_once, autoscaled
from toque.functions import Resources, Retries, function
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.run import room
from toque.functions.runtime.run.room import wait_for_room

pytestmark = [pytest.mark.ray, pytest.mark.long]
TYPES = {"serve": ({"CPU": 1, "serve": 1000}, 1), "cpu": ({"CPU": 1}, 2), "gpu": ({"CPU": 1, "GPU": 1}, 1)}


@function(resources=Resources(num_cpus=1), retries=Retries(max_lost=5))
def where(seconds: float, number: int) -> tuple[int, str]:
    """Work for some time; returns its number and where it ended."""
    time.sleep(seconds)
    return number, ray.get_runtime_context().get_node_id()


@function(resources=Resources(num_cpus=0, num_gpus=1))
def on_a_card() -> str:
    """Return where it ran."""
    return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Autoscaled]:
    with autoscaled(tmp_path_factory.mktemp("autoscaled"), TYPES) as running:
        yield running


def wait(count: int, **each: float) -> None:
    wait_for_room(count, each, what=f"num_workers={count}", remedy="ask for fewer workers")


def test_work_brings_nodes_and_ends_though_one_is_lost_and_then_they_leave(cluster, monkeypatch):
    said = []
    monkeypatch.setattr(room, "report_progress", lambda *_, text: said.append(text))
    assert cluster.nodes() == {}
    wait(2, CPU=1)  # as a training does, whose workers start together
    assert said[0] == "num_workers=2 waits for the autoscaler to start nodes: it needs 2 × (1 CPU)"
    assert sorted(cluster.nodes().values()) == ["cpu", "cpu"]  # and not the free one that serves
    runs = [where.remote(2.0, number) for number in range(6)]
    first, _ = ray.wait([run.ref for run in runs], num_returns=1, timeout=120)
    assert first
    lost = next(iter(cluster.nodes()))
    cluster.lose(lost)
    done = [run.result(200) for run in runs]
    assert [number for number, _ in done] == list(range(6))
    cluster.until(lambda nodes: lost not in nodes)
    cluster.until(lambda nodes: not nodes)


def test_a_card_is_brought_and_what_no_type_has_is_refused_with_the_remedy(cluster, monkeypatch):
    node = on_a_card.remote().result(200)
    assert cluster.nodes()[node] == "gpu"
    monkeypatch.setattr(room, "_SURE_AFTER_S", 3.0)
    with pytest.raises(
        NoRoom, match=r"2 × \(8 GPU\).* can never hold.* may be started, GPU=16 is wanted.*; ask for fewer"
    ):
        wait(2, GPU=8)


def test_serving_grows_by_its_traffic_onto_nodes_of_its_own(cluster):
    assert "serve" not in cluster.nodes().values()
    # In a task, as a handle of Serve keeps to the first cluster that its process was connected to.
    ask = ray.remote(num_cpus=0)(answer_once)
    node = ray.get(ask.remote(), timeout=200)
    assert cluster.nodes()[node] == "serve"
    cluster.until(lambda nodes: node not in nodes)
