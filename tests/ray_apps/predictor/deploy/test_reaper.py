"""Versions in deployments of their own, without Ray: who deploys them, and who ends them."""

from __future__ import annotations

import asyncio

import pytest

from ray_apps.predictor.deploy.reaper import CLAIM_S, LINGER_S, Holds, Keeper
from ray_apps.predictor.deploy.remote import Dedicated, Found, State
from ray_apps.predictor.versions.loaded import LoadError
from tests.ray_apps.predictor.elsewhere import Cluster, Site, Time


def place(cluster: Cluster, time: Time, *, release: int = 1) -> Dedicated:
    loop = asyncio.new_event_loop()  # nothing is asked on it
    loop.close()
    return Dedicated(
        Site(cluster, release),
        loop=loop,
        release=release,
        start_timeout_s=10,
        clock=lambda: time.now,
        wait=time.wait,
    )


def run(dedicated: Dedicated, number: int = 1) -> None:
    dedicated._run(number)


def beat(dedicated: Dedicated, *held: int) -> None:
    dedicated.hold(held)
    dedicated.mend(held)


def test_what_runs_is_found_and_not_deployed_twice():
    cluster, time = Cluster(), Time()
    run(place(cluster, time))
    run(place(cluster, time))  # another door, or the same one after its death
    assert cluster.begun == {1: 1}


def test_a_door_waits_for_what_another_one_deploys():
    cluster, time = Cluster(busy={1}), Time()
    time.then = {
        3: lambda: cluster.states.update({1: Found(State.STARTING)}),
        6: lambda: cluster.states.update({1: Found(State.RUNNING)}),
    }
    cluster.releases[1] = 1
    run(place(cluster, time))
    assert (cluster.begun[1], time.waits) == (0, 6)


def test_a_failure_of_before_is_tried_again_and_one_of_now_is_told():
    cluster, time = Cluster(states={1: Found(State.FAILED, "the disk was full")}), Time()
    run(place(cluster, time))
    assert cluster.begun == {1: 1}
    cluster.states[1], cluster.busy = Found(State.STARTING), {1}
    time.then = {time.waits + 2: lambda: cluster.states.update({1: Found(State.FAILED, "no program")})}
    with pytest.raises(LoadError, match="no program"):
        run(place(cluster, time))


def test_one_that_is_ending_is_awaited_and_deployed_again():
    cluster, time = Cluster(states={1: Found(State.ENDING)}), Time()
    time.then = {4: cluster.states.clear}
    run(place(cluster, time))
    assert (cluster.begun[1], time.waits) == (1, 5)


def test_one_that_never_gets_a_replica_is_given_up():
    cluster, time = Cluster(states={1: Found(State.STARTING)}), Time()
    with pytest.raises(LoadError, match="no replica after 10 s"):
        run(place(cluster, time))


def test_a_later_release_deploys_anew_and_an_earlier_one_does_not():
    cluster, time = Cluster(), Time()
    old, new = place(cluster, time, release=1), place(cluster, time, release=2)
    run(old)
    run(new)
    assert (cluster.begun[1], cluster.releases[1]) == (2, 2)
    run(place(cluster, time, release=1))
    assert (cluster.begun[1], cluster.releases[1]) == (2, 2)


def test_a_release_that_had_to_wait_is_made_up_for():
    cluster, time = Cluster(states={1: Found(State.RUNNING)}, releases={1: 1}, busy={1}), Time()
    new = place(cluster, time, release=2)
    run(new)
    beat(new, 1)
    assert cluster.releases[1] == 1  # it is not taken for what it is not
    cluster.busy.clear()
    beat(new, 1)
    assert (cluster.begun[1], cluster.releases[1]) == (1, 2)


def test_what_somebody_ended_is_deployed_again_while_it_is_held():
    cluster, time = Cluster(), Time()
    door = place(cluster, time)
    run(door)
    cluster.states.clear()
    beat(door, 1)
    assert cluster.begun[1] == 2
    cluster.states.clear()
    beat(door)
    assert cluster.begun[1] == 2
    assert cluster.held == []


def test_only_one_door_may_deploy_until_it_did_or_took_too_long():
    time = Time()
    holds = Holds(lambda: time.now)
    assert holds.claim("v@1", "a")
    assert not holds.claim("v@1", "b")
    assert holds.claim("v@1", "a")
    assert holds.claim("v@2", "b")
    holds.deployed("v@1", 5)
    assert holds.claim("v@1", "b")
    time.wait(CLAIM_S + 1)
    assert holds.claim("v@1", "a")
    assert (holds.release("v@1"), holds.release("v@2")) == (5, 0)
    holds.know(["v@1"], 4)
    assert holds.release("v@1") == 5


def test_what_no_door_holds_ends_after_its_time_and_what_one_holds_stays():
    time, there, ended = Time(), ["v@1", "v@2", "v@3"], list[str]()
    keeper = Keeper(
        lambda: [*there], lambda name: (ended.append(name), there.remove(name)), Holds(lambda: time.now)
    )  # type: ignore[func-returns-value,arg-type]
    assert keeper.hold(["v@1", "v@2"], 10) == ["v@1", "v@2"]  # nothing was seen yet
    keeper.sweep()
    assert keeper.hold(["v@1", "v@9"], 10) == ["v@9"]
    time.wait(9)
    keeper.hold(["v@1"], 10)
    time.wait(9)
    keeper.sweep()
    assert ended == ["v@2"]  # v@3 is held by nobody, but this keeper has only just begun
    time.wait(LINGER_S)
    keeper.sweep()
    assert ended == ["v@2", "v@1", "v@3"]


def test_a_keeper_that_starts_anew_ends_nothing_that_doors_still_hold():
    time, ended = Time(), list[str]()
    keeper = Keeper(lambda: ["v@1"], ended.append, Holds(lambda: time.now))
    for _ in range(100):
        keeper.sweep()
        time.wait(5)
        keeper.hold(["v@1"], 10)
    assert ended == []
