import time
from types import SimpleNamespace

import pytest

from toque.functions import Resources, function
from toque.functions.runtime.errors import NoRoom, TimedOut
from toque.functions.runtime.run import room
from toque.functions.runtime.run.interruption import deadline, paused, waited_s
from toque.functions.runtime.run.room import Needed, Nodes, refuse_impossible, verdict

SMALL, CARD = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("needed", "nodes", "autoscaler", "expected"),
    [
        # what is there holds it, so others have it now
        (Needed(2, {"CPU": 2.0}), Nodes([SMALL]), "absent", (True, "room on the nodes that are there")),
        (Needed(2, {"CPU": 2.0}), Nodes([SMALL]), "unable", (True, "room on the nodes that are there")),
        # nobody brings nodes
        (
            Needed(9, {"CPU": 1.0}),
            Nodes([SMALL, SMALL]),
            "absent",
            (False, "the cluster has no autoscaler, and CPU=9 is wanted and there is CPU=8"),
        ),
        (
            Needed(2, {"CPU": 3.0}),
            Nodes([{"CPU": 3.0}, {"CPU": 2.0}, {"CPU": 2.0}]),
            "absent",
            (False, "the cluster has no autoscaler, and one node holds 1 of such workers at most"),
        ),
        # the autoscaler brings them
        (Needed(4, {"GPU": 1.0}), Nodes([SMALL]), "able", (True, "the autoscaler to start nodes")),
        (
            Needed(4, {"GPU": 1.0}),
            Nodes([CARD]),
            "unable",
            (True, "the autoscaler, whose limits are reached, and other work to end"),
        ),
        (
            Needed(1, {"GPU": 1.0}),
            Nodes([SMALL]),
            "unable",
            (False, "the autoscaler has no node type for it, and GPU=1 is wanted and there is GPU=0"),
        ),
        # the types are known
        (Needed(2, {"GPU": 1.0}), Nodes([], [CARD, CARD]), "unable", (True, "the autoscaler to start nodes")),
        (
            Needed(3, {"GPU": 1.0}),
            Nodes([CARD], [CARD, CARD]),
            "able",
            (False, "with all nodes that may be started, GPU=3 is wanted and there is GPU=2"),
        ),
    ],
)
def test_only_what_no_node_could_ever_hold_is_refused(needed, nodes, autoscaler, expected):
    assert verdict(needed, nodes, autoscaler) == expected


def test_fractions_of_a_cpu_fill_a_node():
    assert Needed(10, {"CPU": 0.1}).fits([{"CPU": 1.0}])
    assert not Needed(11, {"CPU": 0.1}).fits([{"CPU": 1.0}])


def test_a_wait_for_room_is_no_run_time():
    with deadline("f", 0.3):
        with paused():
            time.sleep(0.6)
            assert waited_s() > 0.5
        assert 0.5 < waited_s() < 5
    with pytest.raises(TimedOut, match=r"timeout_s=0\.3"):
        waits_and_runs_too_long()
    assert waited_s() == 0


def waits_and_runs_too_long():
    with deadline("f", 0.3):
        with paused():
            pass
        time.sleep(30)


def test_without_a_time_limit_there_is_nothing_to_pause():
    with paused():
        assert waited_s() == 0


HUGE = 10**15


@pytest.mark.parametrize(
    ("resources", "nodes", "scaled", "refused"),
    [
        ({"num_cpus": 64}, [{"CPU": 2.0}], False, "CPU=64 is wanted and there is CPU=2"),
        ({"num_cpus": 3}, [{"CPU": 2.0}, {"CPU": 2.0}], False, "one node holds 0 of such workers at most"),
        ({"num_cpus": 0, "num_gpus": 1}, [{"CPU": 2.0}], False, "GPU=1 is wanted and there is GPU=0"),
        ({"num_gpus": 0.5}, [{"CPU": 2.0}], False, "GPU=0.5 is wanted"),
        ({"memory_bytes": HUGE}, [{"CPU": 2.0, "memory": 2e9}], False, "memory=1e+15 is wanted"),
        ({"num_cpus": 1}, [], False, ""),  # not asked: any node has it
        ({"num_cpus": 2}, [{"CPU": 2.0}], False, ""),
        ({"num_cpus": 0, "num_gpus": 2}, [{"CPU": 1.0}, {"GPU": 2.0}], False, ""),
        ({"num_cpus": 64}, [{"CPU": 2.0}], True, ""),  # nobody knows what the autoscaler may start
    ],
)
def test_a_function_that_no_node_holds_is_refused_in_words(monkeypatch, resources, nodes, scaled, refused):
    @function(resources=Resources(**resources))
    def huge() -> None: ...

    there = [
        {"Alive": True, "Labels": {"ray.io/node-group": "serve"}, "NodeID": f"{number}", "Resources": each}
        for number, each in enumerate(nodes)
    ]
    gone = {
        "Alive": False,
        "Labels": {},
        "NodeID": "gone",
        "Resources": {"CPU": 99.0, "GPU": 9.0, "memory": 9e15},
    }
    monkeypatch.setattr(room.ray, "nodes", lambda: [gone, *there])
    monkeypatch.setattr(room, "cluster_state", SimpleNamespace(get_cluster_config=lambda: None))
    monkeypatch.setattr(
        room, "_autoscaling_state", lambda: SimpleNamespace(autoscaler_state_version=int(scaled))
    )
    if not refused:
        refuse_impossible(huge)
        return
    with pytest.raises(NoRoom, match="huge needs 1 ×") as caught:
        refuse_impossible(huge)
    assert refused in str(caught.value)
    assert "declare less in its Resources" in str(caught.value)
