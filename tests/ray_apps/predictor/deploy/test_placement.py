"""Number and placement of replicas: options, a project's placements, and what is deployed for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import serve
from ray.serve._private.haproxy import HAProxyManager

from toque.functions.placement import Placement
from toque.ray_apps.config.applications import applications
from toque.ray_apps.config.builders import pool
from toque.ray_apps.local.lifecycle import create_workspaces, models_of, placements
from toque.ray_apps.local.settings import Ports, Settings
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.model_paths import version_app
from toque.ray_apps.predictor import PoolOptions, PredictorOptions, application, pool_application

STORE = "file:///tmp/nowhere"
PROJECT = """
from toque.functions.project import ModelDefinition

FEATURES = []
MODELS = [ModelDefinition(name="{model}", service="s", entities="e", label="y", numeric=("x",))]
"""


def targets(placed: dict[str, Placement]) -> list[serve.RunTarget]:
    return [each.target() for each in applications(placed)]


def deployment_of(found: serve.Application) -> Any:
    return found._bound_deployment


def test_a_fixed_number_of_replicas_is_the_default():
    options = PredictorOptions(store_url=STORE)
    assert options.scale == {"num_replicas": 1}
    assert deployment_of(application("late", options)).num_replicas == 1
    assert deployment_of(pool_application(PoolOptions(store_url=STORE))).num_replicas == 2


def test_the_memory_of_a_pool_is_a_setting_of_the_platform():
    environment = {"TOQUE_STORE": STORE}
    assert PoolOptions.from_environment(environment).memory_limit_bytes == 1 << 30
    for text, size in (("0", 1 << 30), ("1.5", 1_500_000_000)):
        given = environment | {"TOQUE_POOL_MEMORY_GB": text}
        assert PoolOptions.from_environment(given).memory_limit_bytes == size
    found = PoolOptions.from_environment(
        environment | {"TOQUE_POOL_MEMORY_GB": "1.5"}, memory_limit_bytes=1 << 21
    )
    assert found.memory_limit_bytes == 1 << 21  # an option is nearer than the environment
    for text in ("0.001", "-1", "much", "inf", "nan"):
        with pytest.raises(ValueError, match=rf"TOQUE_POOL_MEMORY_GB={text}: give the memory .* in GB"):
            PoolOptions.from_environment(environment | {"TOQUE_POOL_MEMORY_GB": text})


def test_a_model_may_go_to_zero_once_nobody_asks():
    options = PredictorOptions(store_url=STORE, min_replicas=0, max_replicas=3, idle_s=60)
    config = deployment_of(application("late", options))._deployment_config.autoscaling_config
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 3)
    assert config.downscale_to_zero_delay_s == 60


def test_more_replicas_at_least_than_at_most_are_refused():
    with pytest.raises(ValidationError, match="min_replicas=4 is more than max_replicas=3"):
        PredictorOptions(store_url=STORE, min_replicas=4, max_replicas=3)
    with pytest.raises(ValidationError, match="min_replicas=2 is more than max_replicas=1"):
        Placement(min_replicas=2)


def test_models_are_deployed_where_their_project_places_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_STORE", STORE)
    placed = {
        "alone": Placement(),
        "two": Placement(min_replicas=2, max_replicas=2),
        "sometimes": Placement(min_replicas=0, max_replicas=2, target_latency_ms=40),
        "small": Placement(pool=True),
        "tiny": Placement(pool=True),
    }
    found = {one.name: one for one in targets(placed)}
    assert {one.route_prefix for one in found.values()} == {
        "/", "/api", None, "/v2/models/alone", "/v2/models/two", "/v2/models/sometimes", "/v2/models",
    }  # fmt: skip
    assert deployment_of(found["predictor-two"].target).num_replicas == 2
    sometimes = deployment_of(found["predictor-sometimes"].target)._deployment_config
    assert sometimes.autoscaling_config.min_replicas == 0
    assert sometimes.autoscaling_config.policy.policy_kwargs == {"target_latency_ms": 40}
    assert "pool" not in {one.name for one in targets({"alone": Placement()})}


def test_no_two_workspaces_share_an_application_a_route_or_a_backend(monkeypatch: pytest.MonkeyPatch):
    """The second and third names differ from the first only in characters that a sanitizer may replace."""
    monkeypatch.setenv("TOQUE_STORE", STORE)
    names = ["team.churn", "team/churn", "team_churn", "team-churn", "churn", "other/churn"]
    placed = {name: Placement() for name in names} | {
        "team/tiny": Placement(pool=True),
        "t": Placement(pool=True),
    }
    found = [one for one in targets(placed) if one.name.startswith(("predictor-", "pool"))]
    assert (
        len({HAProxyManager.get_safe_name(one.name) for one in found})
        == len({one.route_prefix for one in found})
        == 8
    )
    routes = {one.name: one.route_prefix for one in found}
    assert routes["predictor-team..churn"] == "/workspaces/team/v2/models/churn"
    assert routes["pool-team"] == "/workspaces/team/v2/models"
    assert routes["pool"] == "/v2/models"
    versions = {version_app("churn", 3, workspace) for workspace in ("default", "team", "other")}
    assert versions == {"version-churn@3", "version-team..churn@3", "version-other..churn@3"}


def test_a_predictor_of_a_workspace_opens_that_workspaces_store_and_log(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_STORE", STORE)
    found: Any = {one.name: one.target for one in targets({"team/late": Placement()})}["predictor-team..late"]
    options = PredictorOptions.model_validate(deployment_of(found).init_args[1])
    assert (options.store_url, options.workspace) == (STORE, "team")
    assert options.wal.as_uri() == f"{STORE}-wal/workspaces/team"
    given = options.model_copy(update={"wal_root": Path("/wal")})
    assert given.wal == Path("/wal/workspaces/team")
    assert given.model_copy(update={"workspace": "default"}).wal == Path("/wal")
    with pytest.raises(ValidationError, match="workspace='Team' is not a name"):
        PredictorOptions(store_url=STORE, workspace="Team")


def test_the_environment_of_a_workspace_gives_the_platforms_store_and_the_workspace():
    environment = {"TOQUE_STORE": STORE, "TOQUE_WORKSPACE": "team"}
    options = PredictorOptions.from_environment(environment)
    assert (options.store_url, options.workspace) == (STORE, "team")
    built: Any = pool({"workspace": "other"})
    assert built._bound_deployment.init_args[0]["workspace"] == "other"


def test_the_models_of_all_projects_are_deployed_each_in_its_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module, model in (("team_base", "late"), ("team_payments", "late")):
        (tmp_path / f"{module}.py").write_text(PROJECT.format(model=model))
    monkeypatch.syspath_prepend(tmp_path)
    project = "team_base,payments=team_payments"
    assert models_of(project) == ("late", "payments/late")
    settings = Settings(home=tmp_path, project=project)
    assert create_workspaces(settings) == ["payments"]
    assert create_workspaces(settings) == []
    running = RunningPlatform(
        settings=settings,
        boot="",
        ports=Ports(),
        redis_url="",
        run_folder=tmp_path,
        models=models_of(project),
    )
    assert list(placements(running)) == ["late", "payments/late"]
    assert [running.model_url(name) for name in running.models] == [
        "http://127.0.0.1:8000/v2/models/late",
        "http://127.0.0.1:8000/workspaces/payments/v2/models/late",
    ]
