"""Versions in deployments of their own, without Ray: their options, and requests to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.ray_apps.predictor.conftest import ServedModel, load_fake_scorer, tensors
from tests.ray_apps.predictor.deploy.fake_deployments import FakeCluster, FakeDeployments
from toque.functions.placement import Placement
from toque.ray_apps.config.applications import applications
from toque.ray_apps.config.builders import predictor
from toque.ray_apps.predictor import (
    DedicatedOptions,
    PoolOptions,
    PredictorOptions,
    application,
    build_predictor,
)
from toque.ray_apps.predictor.deploy import deployment
from toque.ray_apps.predictor.deploy.dedicated import version_application
from toque.ray_apps.predictor.deploy.remote import (
    DedicatedVersions,
    DeploymentState,
    DeploymentStatus,
    Reply,
    VersionClient,
)
from toque.ray_apps.predictor.protocol.errors import NotReady
from toque.ray_apps.predictor.versions.loaded import LoadedVersion, LoadError, fetch_version
from toque.registry import Registry

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
    version_loader = Placement(
        dedicated=True, min_replicas=0, max_replicas=3, target_latency_ms=40, num_gpus=1
    )
    found: Any = {one.name: one.target().target for one in applications({"late": version_loader})}[
        "predictor-late"
    ]
    endpoint = found._bound_deployment
    assert endpoint.num_replicas == 1
    assert endpoint.ray_actor_options["num_cpus"] == 0
    own = PredictorOptions.model_validate(endpoint.init_args[1]).dedicated
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
    """Releases of an endpoint that is deployed twice."""
    endpoints: list[Any] = [application("late", options) for _ in range(2)]
    return [endpoint._bound_deployment.init_args[2] for endpoint in endpoints]


def test_each_deploy_of_a_door_to_dedicated_versions_is_a_later_release():
    first, second = releases(PredictorOptions(store_url=STORE, dedicated=OWN))
    assert first < second
    assert releases(PredictorOptions(store_url=STORE)) == [0, 0]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, as an endpoint's runs beside the loading thread."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(60)
    made.close()


@pytest.fixture
async def dedicated(
    make_served_model: Callable[..., ServedModel], loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> AsyncIterator[tuple[ServedModel, FakeCluster]]:
    """A served model with one champion, whose versions run in deployments of a fake cluster."""
    made = make_served_model()
    registry = Registry(made.registry.store, actor="replica")

    def load(number: int) -> LoadedVersion:
        record = registry.get_version("late", number)
        return fetch_version(record, registry, load_fake_scorer, scratch=tmp_path / "remote")

    cluster = FakeCluster(load)
    version_loader = DedicatedVersions(FakeDeployments(cluster), loop=loop, release=1, start_timeout_s=30)
    made.engine._version_loader = version_loader  # the same engine, predictor and endpoint as everywhere
    made.registry.promote("late", made.version())
    made.refresh()
    yield made, cluster
    await made.predictor.close()
    await made.client.aclose()


async def served(served_model: ServedModel, unit: str = "u") -> tuple[str, str]:
    answer = (await served_model.infer(tensors(parameters={"unit": unit}))).json()
    return answer["model_version"], answer["parameters"]["arm"]


async def test_splits_promotions_rollbacks_and_shadows_work_as_for_local_versions(
    dedicated: tuple[ServedModel, FakeCluster],
):
    served_model, cluster = dedicated
    second, third = served_model.version(0.5), served_model.version(0.75)
    served_model.registry.set_traffic("late", {"canary": (second, 0.3)}, shadows=[third])
    served_model.refresh()
    traffic = served_model.registry.traffic("late")
    for i in range(40):
        arm = traffic.assign(f"u{i}")
        assert await served(served_model, f"u{i}") == (str(arm.version), arm.name)
    await served_model.predictor.shadows.drained()
    assert served_model.predictor.shadows.describe() == {"scored": 40, "failed": 0, "dropped": 0}
    served_model.registry.promote("late", second)
    served_model.refresh()
    assert await served(served_model) == ("2", "champion")
    served_model.registry.rollback("late", "champion")
    served_model.refresh()
    assert await served(served_model) == ("1", "champion")
    assert cluster.deploys == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("fail", "words"),
    [("load", "not a model"), ("predict", "out of memory"), ("shape", "has shape"), ("values", "too large")],
)
async def test_a_version_that_cannot_answer_takes_no_traffic(
    dedicated: tuple[ServedModel, FakeCluster], fail: str, words: str
):
    served_model, _ = dedicated
    broken = served_model.version(0.5, fail=fail)
    served_model.registry.promote("late", broken)
    served_model.refresh()
    assert await served(served_model) == ("1", "champion")
    reason = (await served_model.client.get("/status")).json()["failures"][str(broken)]
    assert words in reason
    assert reason.count("cannot be served") <= 1


async def test_values_that_the_model_refuses_are_a_400_and_faults_are_not(
    dedicated: tuple[ServedModel, FakeCluster],
):
    served_model, cluster = dedicated
    scorer: Any = cluster.replicas[1]._scorer
    scorer.fail = "values"
    answer = await served_model.infer()
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "inputs: the model refuses them: a number is too large"},
    )
    scorer.fail = "predict"
    assert (await served_model.infer()).status_code == 500


async def test_a_version_asked_for_by_number_is_run_first(dedicated: tuple[ServedModel, FakeCluster]):
    served_model, cluster = dedicated
    other = served_model.version(0.5)
    served_model.engine.follow_once()
    answer = await served_model.infer(path=f"/versions/{other}/infer")
    assert answer.json()["model_version"] == str(other)
    assert cluster.deploys[other] == 1


async def test_batches_are_made_where_the_model_is(dedicated: tuple[ServedModel, FakeCluster]):
    served_model, cluster = dedicated
    second = served_model.version(0.5, tags={"max_batch_rows": "8"})
    served_model.registry.promote("late", second)
    served_model.refresh()
    assert await served(served_model) == (str(second), "champion")
    here = served_model.engine.find(second)
    assert here is not None
    assert here.batching is None
    assert cluster.replicas[second].batching is not None


async def test_a_deadline_holds_on_the_way(dedicated: tuple[ServedModel, FakeCluster]):
    served_model, _ = dedicated
    here: Any = served_model.engine.find(1)
    given_up: list[str] = []

    async def silent(inputs: Any, abstained: Any) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append("asked")
            raise
        return {}

    here._client._predict = silent
    answer = await served_model.infer(tensors(parameters={"timeout": 20_000}))
    assert answer.status_code == 504
    assert given_up == ["asked"]


async def test_a_version_that_does_not_answer_in_time_is_a_503():
    async def silent(inputs: Any, abstained: Any) -> Reply:
        await asyncio.Event().wait()
        return {}

    client = VersionClient("late@1", silent, loop=asyncio.get_running_loop(), timeout_s=0.01)
    with pytest.raises(NotReady, match=r"late@1: none of its replicas answered within 0\.01 s"):
        await client.answer({"x": np.zeros(1)})


async def test_an_endpoint_whose_champion_failed_to_start_opens_once_another_try_succeeds(
    served_model: ServedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    registry = Registry(served_model.registry.store, actor="replica")
    cluster, tries = FakeCluster(), []

    def load(number: int) -> LoadedVersion:
        tries.append(number)
        if len(tries) == 1:
            raise LoadError("late@1 cannot be served: the node has no room")
        return fetch_version(
            registry.get_version("late", number), registry, load_fake_scorer, scratch=tmp_path / "remote"
        )

    cluster.loads = load
    monkeypatch.setattr(deployment, "ServeDeployments", lambda *_, release: FakeDeployments(cluster, release))
    monkeypatch.setattr(DedicatedVersions, "start", lambda *_: None)
    options = PredictorOptions(store_url=served_model.registry.store.url, authentication=False, dedicated=OWN)
    endpoint = await deployment._open_endpoint("late", options, 1)
    assert tries == [1, 1]
    assert endpoint.predictor.engine.find_fault() is None
    await endpoint.close()


async def test_an_endpoint_opens_with_its_champion_while_a_canary_waits_for_room(
    served_model: ServedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    registry = Registry(served_model.registry.store, actor="replica")
    canary = served_model.version(0.5)
    served_model.registry.set_traffic("late", {"canary": (canary, 0.5)})
    cluster = FakeCluster(states={canary: DeploymentStatus(DeploymentState.STARTING)})
    cluster.loads = lambda number: fetch_version(
        registry.get_version("late", number), registry, load_fake_scorer, scratch=tmp_path / "remote"
    )
    monkeypatch.setattr(deployment, "ServeDeployments", lambda *_, release: FakeDeployments(cluster, release))
    monkeypatch.setattr(DedicatedVersions, "start", lambda *_: None)
    options = PredictorOptions(store_url=served_model.registry.store.url, authentication=False, dedicated=OWN)
    endpoint = await deployment._open_endpoint("late", options, 1)
    assert endpoint.predictor.engine.loaded == [1]
    cluster.start_replica(canary)
    deadline = asyncio.get_running_loop().time() + 60
    while endpoint.predictor.engine.loaded != [1, canary]:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    await endpoint.close()
