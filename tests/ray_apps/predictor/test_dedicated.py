"""Versions in deployments of their own, without Ray: options, the way to a version, who deploys it and who ends it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from functions.placement import Placement
from ray_apps.config.builders import predictor
from ray_apps.local.deploying import targets
from ray_apps.predictor import (
    DedicatedOptions,
    PoolOptions,
    PredictorOptions,
    application,
    build_predictor,
    deployment,
)
from ray_apps.predictor.dedicated import version_application
from ray_apps.predictor.errors import BadRequest, NotReady
from ray_apps.predictor.keeper import CLAIM_S, LINGER_S, Holds, Keeper
from ray_apps.predictor.loaded import LoadedVersion, LoadError, fetch_version
from ray_apps.predictor.remote import Ask, Dedicated, Found, Reply, State, Way
from registry import Registry
from tests.ray_apps.predictor.conftest import Kitchen, load_answer, tensors

STORE = "file:///tmp/nowhere"
OWN = DedicatedOptions(min_replicas=0, max_replicas=3, num_cpus=2, num_gpus=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pool": True, "dedicated": True}, "pool=True and dedicated=True exclude each other"),
        ({"num_gpus": 1}, "num_gpus=1 is for each replica of a dedicated version"),
        ({"num_cpus": 0.5, "pool": True}, "num_cpus=0.5 is for each replica of a dedicated version"),
        ({"dedicated": True, "min_replicas": 3}, "min_replicas=3 is more than max_replicas=1"),
        ({"target_latency_ms": 40}, "target_latency_ms=40 for always 1 replicas"),
    ],
)
def test_placements_that_mean_nothing_are_refused(fields: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        Placement(**fields)


def test_options_that_mean_nothing_are_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match=r"say dedicated\.max_replicas"):
        PredictorOptions(store_url=STORE, max_replicas=2, dedicated=OWN)
    with pytest.raises(ValidationError, match="a pool's versions live in its replicas"):
        PoolOptions(store_url=STORE, dedicated=OWN)
    with pytest.raises(ValidationError, match="min_replicas=4 is more than max_replicas=1"):
        DedicatedOptions(min_replicas=4)
    with pytest.raises(ValueError, match=r"options\.dedicated needs Serve"):
        build_predictor("late", PredictorOptions(store_url=f"file://{tmp_path}", dedicated=OWN))
    with pytest.raises(ValueError, match=r"options\.dedicated is None"):
        version_application("late", 1, PredictorOptions(store_url=STORE))


def test_the_door_is_one_replica_and_a_version_is_what_its_placement_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_STORE", STORE)
    place = Placement(dedicated=True, min_replicas=0, max_replicas=3, target_latency_ms=40, num_gpus=1)
    found: Any = {one.name: one.target for one in targets({"late": place})}["predictor-late"]
    door = found._bound_deployment
    assert door.num_replicas == 1
    assert door.ray_actor_options["num_cpus"] == 0
    own = PredictorOptions.model_validate(door.init_args[1]).dedicated
    assert own == DedicatedOptions(
        min_replicas=0, max_replicas=3, target_latency_ms=40, num_cpus=0, num_gpus=1
    )


def test_a_serve_config_says_both_how_many_doors_and_how_many_of_a_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_STORE", STORE)
    options = {"num_replicas": 2, "dedicated": {"min_replicas": 0, "max_replicas": 3, "num_gpus": 1}}
    found: Any = predictor({"model": "late", "options": options})
    assert found._bound_deployment.num_replicas == 2
    own = PredictorOptions.model_validate(found._bound_deployment.init_args[1]).dedicated
    assert own == DedicatedOptions(min_replicas=0, max_replicas=3, num_gpus=1)
    with pytest.raises(ValidationError, match="replicas"):
        predictor({"model": "late", "options": {"dedicated": {"replicas": 2}}})


def test_a_versions_deployment_reserves_and_scales_as_it_is_told():
    options = PredictorOptions(store_url=STORE, dedicated=OWN, idle_s=60, target_in_flight=4)
    found: Any = version_application("late", 7, options)
    bound = found._bound_deployment
    assert bound.name == "version-late@7"
    assert bound.ray_actor_options["num_gpus"] == 1
    assert bound.ray_actor_options["num_cpus"] == 2
    scale = bound._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.downscale_to_zero_delay_s) == (0, 3, 60)
    fixed: Any = version_application(
        "late",
        7,
        PredictorOptions(store_url=STORE, dedicated=DedicatedOptions(min_replicas=2, max_replicas=2)),
    )
    assert fixed._bound_deployment.num_replicas == 2


def releases(options: PredictorOptions) -> list[int]:
    """Of a door that is deployed twice."""
    doors: list[Any] = [application("late", options) for _ in range(2)]
    return [door._bound_deployment.init_args[2] for door in doors]


def test_each_deploy_of_a_door_to_dedicated_versions_is_a_later_release():
    first, second = releases(PredictorOptions(store_url=STORE, dedicated=OWN))
    assert first < second
    assert releases(PredictorOptions(store_url=STORE)) == [0, 0]


@dataclass
class Cluster:
    """Deployments of versions as Serve and the keeper have them, in this process.

    states: of the versions that have a deployment; releases: by which they were deployed. loads: what a replica does
    when it starts. busy: versions that another door is about to deploy.
    """

    loads: Callable[[int], LoadedVersion] | None = None
    states: dict[int, Found] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)
    replicas: dict[int, LoadedVersion] = field(default_factory=dict)
    begun: Counter[int] = field(default_factory=Counter)
    busy: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)

    def begin_of(self, number: int) -> None:
        """A replica starts."""
        try:
            if self.loads is not None:
                self.replicas[number] = self.loads(number)
            self.states[number] = Found(State.RUNNING)
        except LoadError as error:
            self.states[number] = Found(State.FAILED, str(error))


@dataclass
class Site:
    cluster: Cluster
    at: int = 1

    def find(self, number: int) -> Found | None:
        return self.cluster.states.get(number)

    def begin(self, number: int) -> bool:
        if number in self.cluster.busy:
            return False
        self.cluster.begun[number] += 1
        self.cluster.releases[number] = self.at
        self.cluster.begin_of(number)
        return True

    def release(self, number: int) -> int:
        return self.cluster.releases.get(number, 0)

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        self.cluster.held = list(numbers)
        self.cluster.releases |= dict.fromkeys(current, self.at)
        return [number for number in numbers if number not in self.cluster.states]

    def ask(self, number: int) -> Ask:
        async def ask(inputs: Mapping[str, Any], abstained: Sequence[int]) -> Reply:
            try:
                return self.cluster.replicas[number].predict(inputs, abstained)
            except BadRequest as refusal:
                return str(refusal)

        return ask


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop that versions are asked on, in a thread of its own as a door's is beside the loading one."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(30)
    made.close()


class Time:
    """A clock that only waiting moves, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[int, Callable[[], object]] = {}
        self.waits = 0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1
        self.then.pop(self.waits, lambda: None)()


@pytest.fixture
async def dedicated(
    make_kitchen: Callable[..., Kitchen], loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> AsyncIterator[tuple[Kitchen, Cluster]]:
    """A kitchen whose versions are elsewhere, one champion."""
    made = make_kitchen()
    registry = Registry(made.registry.store, actor="replica")

    def load(number: int) -> LoadedVersion:
        record = registry.get_version("late", number)
        return fetch_version(record, registry, load_answer, scratch=tmp_path / "elsewhere")

    cluster = Cluster(load)
    place = Dedicated(Site(cluster), loop=loop, release=1, start_timeout_s=30)
    made.engine._place = place  # the same engine, predictor and door as everywhere
    made.registry.promote("late", made.version())
    made.settle()
    yield made, cluster
    await made.predictor.close()
    await made.client.aclose()


async def served(kitchen: Kitchen, unit: str = "u") -> tuple[str, str]:
    answer = (await kitchen.infer(tensors(parameters={"unit": unit}))).json()
    return answer["model_version"], answer["parameters"]["arm"]


async def test_splits_promotions_rollbacks_and_shadows_are_as_elsewhere(dedicated: tuple[Kitchen, Cluster]):
    kitchen, cluster = dedicated
    second, third = kitchen.version(0.5), kitchen.version(0.75)
    kitchen.registry.set_traffic("late", {"canary": (second, 0.3)}, shadows=[third])
    kitchen.settle()
    traffic = kitchen.registry.traffic("late")
    for i in range(40):
        arm = traffic.assign(f"u{i}")
        assert await served(kitchen, f"u{i}") == (str(arm.version), arm.name)
    await kitchen.predictor.shadows.drained()
    assert kitchen.predictor.shadows.describe() == {"scored": 40, "failed": 0, "dropped": 0}
    kitchen.registry.promote("late", second)
    kitchen.settle()
    assert await served(kitchen) == ("2", "champion")
    kitchen.registry.rollback("late", "champion")
    kitchen.settle()
    assert await served(kitchen) == ("1", "champion")
    assert cluster.begun == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("fail", "words"),
    [("load", "not a model"), ("predict", "out of memory"), ("shape", "has shape"), ("values", "too large")],
)
async def test_a_version_that_cannot_answer_takes_no_traffic(
    dedicated: tuple[Kitchen, Cluster], fail: str, words: str
):
    kitchen, _ = dedicated
    broken = kitchen.version(0.5, fail=fail)
    kitchen.registry.promote("late", broken)
    kitchen.settle()
    assert await served(kitchen) == ("1", "champion")
    reason = (await kitchen.client.get("/status")).json()["failures"][str(broken)]
    assert words in reason
    assert reason.count("cannot be served") <= 1


async def test_values_that_the_model_refuses_are_a_400_and_faults_are_not(
    dedicated: tuple[Kitchen, Cluster],
):
    kitchen, cluster = dedicated
    scorer: Any = cluster.replicas[1]._scorer
    scorer.fail = "values"
    answer = await kitchen.infer()
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "inputs: the model refuses them: a number is too large"},
    )
    scorer.fail = "predict"
    assert (await kitchen.infer()).status_code == 500


async def test_a_version_asked_for_by_number_is_run_first(dedicated: tuple[Kitchen, Cluster]):
    kitchen, cluster = dedicated
    other = kitchen.version(0.5)
    kitchen.engine.follow_once()
    answer = await kitchen.infer(path=f"/versions/{other}/infer")
    assert answer.json()["model_version"] == str(other)
    assert cluster.begun[other] == 1


async def test_batches_are_made_where_the_model_is(dedicated: tuple[Kitchen, Cluster]):
    kitchen, cluster = dedicated
    second = kitchen.version(0.5, tags={"max_batch_rows": "8"})
    kitchen.registry.promote("late", second)
    kitchen.settle()
    assert await served(kitchen) == (str(second), "champion")
    here = kitchen.engine.find(second)
    assert here is not None
    assert here.batching is None
    assert cluster.replicas[second].batching is not None


async def test_a_deadline_holds_on_the_way(dedicated: tuple[Kitchen, Cluster]):
    kitchen, _ = dedicated
    here: Any = kitchen.engine.find(1)
    given_up: list[str] = []

    async def silent(inputs: Any, abstained: Any) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append("asked")
            raise
        return {}

    here._way._ask = silent
    answer = await kitchen.infer(tensors(parameters={"timeout": 20_000}))
    assert answer.status_code == 504
    assert given_up == ["asked"]


async def test_who_does_not_answer_in_time_is_a_503():
    async def silent(inputs: Any, abstained: Any) -> Reply:
        await asyncio.Event().wait()
        return {}

    way = Way("late@1", silent, loop=asyncio.get_running_loop(), patience_s=0.01)
    with pytest.raises(NotReady, match=r"late@1: none of its replicas answered within 0\.01 s"):
        await way.answer({"x": np.zeros(1)})


async def test_a_door_opens_with_its_champion_while_a_canary_waits_for_room(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    registry = Registry(kitchen.registry.store, actor="replica")
    canary = kitchen.version(0.5)
    kitchen.registry.set_traffic("late", {"canary": (canary, 0.5)})
    cluster = Cluster(states={canary: Found(State.STARTING)})
    cluster.loads = lambda number: fetch_version(
        registry.get_version("late", number), registry, load_answer, scratch=tmp_path / "elsewhere"
    )
    monkeypatch.setattr(deployment, "ServeSite", lambda *_, release: Site(cluster, release))
    monkeypatch.setattr(Dedicated, "start", lambda *_: None)
    options = PredictorOptions(store_url=kitchen.registry.store.url, authentication=False, dedicated=OWN)
    door = await deployment._open_door("late", options, 1)
    assert door.predictor.engine.loaded == [1]
    cluster.begin_of(canary)
    deadline = asyncio.get_running_loop().time() + 60
    while door.predictor.engine.loaded != [1, canary]:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    await door.close()


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
