"""Versions in deployments of their own, without Ray: which replica deploys them, and when the reaper ends them."""

from __future__ import annotations

import asyncio

import pytest

from tests.ray_apps.predictor.deploy.fake_deployments import FakeClock, FakeCluster, FakeDeployments
from toque.ray_apps.predictor.deploy.dedicated import CLAIM_S, LINGER_S, DeploymentHolds, Reaper
from toque.ray_apps.predictor.deploy.remote import DedicatedVersions, DeploymentState, DeploymentStatus
from toque.ray_apps.predictor.versions.loaded import LoadError


def dedicated_versions(cluster: FakeCluster, time: FakeClock, *, release: int = 1) -> DedicatedVersions:
    loop = asyncio.new_event_loop()  # nothing is asked on it
    loop.close()
    return DedicatedVersions(
        FakeDeployments(cluster, release),
        loop=loop,
        release=release,
        start_timeout_s=10,
        clock=lambda: time.now,
        wait=time.wait,
    )


def run(dedicated: DedicatedVersions, number: int = 1) -> None:
    dedicated._run(number)


def beat(dedicated: DedicatedVersions, *held: int) -> None:
    dedicated.hold(held)
    dedicated.mend(held)


def test_a_running_deployment_is_found_and_not_deployed_twice():
    cluster, time = FakeCluster(), FakeClock()
    run(dedicated_versions(cluster, time))
    run(dedicated_versions(cluster, time))  # another replica, or the same one after its death
    assert cluster.deploys == {1: 1}


def test_a_version_that_another_replica_deploys_is_waited_for():
    cluster, time = FakeCluster(busy={1}), FakeClock()
    time.then = {
        3: lambda: cluster.states.update({1: DeploymentStatus(DeploymentState.STARTING)}),
        6: lambda: cluster.states.update({1: DeploymentStatus(DeploymentState.RUNNING)}),
    }
    cluster.releases[1] = 1
    run(dedicated_versions(cluster, time))
    assert (cluster.deploys[1], time.waits) == (0, 6)


def test_a_failure_of_before_is_tried_again_and_one_of_now_is_told():
    cluster, time = (
        FakeCluster(states={1: DeploymentStatus(DeploymentState.FAILED, "the disk was full")}),
        FakeClock(),
    )
    run(dedicated_versions(cluster, time))
    assert cluster.deploys == {1: 1}
    cluster.states[1], cluster.busy = DeploymentStatus(DeploymentState.STARTING), {1}
    time.then = {
        time.waits + 2: lambda: cluster.states.update(
            {1: DeploymentStatus(DeploymentState.FAILED, "no program")}
        )
    }
    with pytest.raises(LoadError, match="no program"):
        run(dedicated_versions(cluster, time))


def test_an_ending_deployment_is_awaited_and_deployed_again():
    cluster, time = FakeCluster(states={1: DeploymentStatus(DeploymentState.ENDING)}), FakeClock()
    time.then = {4: cluster.states.clear}
    run(dedicated_versions(cluster, time))
    assert (cluster.deploys[1], time.waits) == (1, 5)


def test_a_deployment_that_never_gets_a_replica_is_given_up():
    cluster, time = FakeCluster(states={1: DeploymentStatus(DeploymentState.STARTING)}), FakeClock()
    with pytest.raises(LoadError, match="no replica after 10 s"):
        run(dedicated_versions(cluster, time))


def test_a_later_release_deploys_anew_and_an_earlier_one_does_not():
    cluster, time = FakeCluster(), FakeClock()
    old, new = dedicated_versions(cluster, time, release=1), dedicated_versions(cluster, time, release=2)
    run(old)
    run(new)
    assert (cluster.deploys[1], cluster.releases[1]) == (2, 2)
    run(dedicated_versions(cluster, time, release=1))
    assert (cluster.deploys[1], cluster.releases[1]) == (2, 2)


def test_a_release_that_had_to_wait_is_made_up_for():
    cluster, time = (
        FakeCluster(states={1: DeploymentStatus(DeploymentState.RUNNING)}, releases={1: 1}, busy={1}),
        FakeClock(),
    )
    new = dedicated_versions(cluster, time, release=2)
    run(new)
    beat(new, 1)
    assert cluster.releases[1] == 1  # it is not taken for what it is not
    cluster.busy.clear()
    beat(new, 1)
    assert (cluster.deploys[1], cluster.releases[1]) == (1, 2)


def test_a_held_deployment_that_was_deleted_is_deployed_again():
    cluster, time = FakeCluster(), FakeClock()
    endpoint = dedicated_versions(cluster, time)
    run(endpoint)
    cluster.states.clear()
    beat(endpoint, 1)
    assert cluster.deploys[1] == 2
    cluster.states.clear()
    beat(endpoint)
    assert cluster.deploys[1] == 2
    assert cluster.held == []


def test_one_replica_may_deploy_until_it_did_or_took_too_long():
    time = FakeClock()
    holds = DeploymentHolds(lambda: time.now)
    assert holds.claim("v@1", "a")
    assert not holds.claim("v@1", "b")
    assert holds.claim("v@1", "a")
    assert holds.claim("v@2", "b")
    holds.deployed("v@1", 5)
    assert holds.claim("v@1", "b")
    time.wait(CLAIM_S + 1)
    assert holds.claim("v@1", "a")
    assert (holds.release("v@1"), holds.release("v@2")) == (5, 0)
    holds.note_release(["v@1"], 4)
    assert holds.release("v@1") == 5


def test_a_deployment_ends_once_its_hold_expires_and_a_held_one_stays():
    time, there, ended = FakeClock(), ["v@1", "v@2", "v@3"], list[str]()
    reaper = Reaper(
        lambda: [*there],
        lambda name: (ended.append(name), there.remove(name)),
        DeploymentHolds(lambda: time.now),
    )  # type: ignore[func-returns-value,arg-type]
    assert reaper.hold(["v@1", "v@2"], 10) == ["v@1", "v@2"]  # nothing was seen yet
    reaper.sweep()
    assert reaper.hold(["v@1", "v@9"], 10) == ["v@9"]
    time.wait(9)
    reaper.hold(["v@1"], 10)
    time.wait(9)
    reaper.sweep()
    assert ended == ["v@2"]  # v@3 is held by nobody, but this reaper has only just begun
    time.wait(LINGER_S)
    reaper.sweep()
    assert ended == ["v@2", "v@1", "v@3"]


def test_a_new_reaper_ends_nothing_that_is_still_held():
    time, ended = FakeClock(), list[str]()
    reaper = Reaper(lambda: ["v@1"], ended.append, DeploymentHolds(lambda: time.now))
    for _ in range(100):
        reaper.sweep()
        time.wait(5)
        reaper.hold(["v@1"], 10)
    assert ended == []
