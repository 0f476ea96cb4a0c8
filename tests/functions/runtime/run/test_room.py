import time

import pytest

from functions.runtime.errors import TimedOut
from functions.runtime.run.deadline import deadline, paused, waited_s
from functions.runtime.run.room import Needed, Nodes, verdict

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
