import inspect
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import ray
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from toque.clusters.profile import Profile
from toque.functions.placement import Placement
from toque.ray_apps.config.applications import serve_config
from toque.ray_apps.config.builders import PredictorArgs, ticker

PLACED = {
    "alone": Placement(),
    "team/scaled": Placement(min_replicas=0, max_replicas=2),
    "own": Placement(dedicated=True, num_cpus=1),
    "small": Placement(pool=True),
}


@pytest.fixture
def schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeDeploySchema:
    monkeypatch.setenv("TOQUE_STORE", f"file://{tmp_path}/store")
    profile = Profile.model_validate({"models": {"alone": {"num_replicas": 3}, "free": {}}})
    return ServeDeploySchema.model_validate(serve_config(profile, PLACED, "r1"))


def test_serve_accepts_the_config_and_builds_every_application(schema: ServeDeploySchema) -> None:
    names = {each.name for each in schema.applications}
    assert names == {
        "gateway", "mlflow", "ticker", "grpc", "predictor-alone", "predictor-team..scaled", "predictor-own",
        "predictor-free", "pool",
    }  # fmt: skip
    assert len(names) == len(schema.applications)
    for application in schema.applications:
        module, _, name = application.import_path.partition(":")
        builder = getattr(import_module(module), name)
        assert len(inspect.signature(builder).parameters) == 1
        built = call_user_app_builder_with_args_if_necessary(builder, application.args)
        assert isinstance(built, Application)


def test_a_profile_says_how_a_model_is_served(schema: ServeDeploySchema) -> None:
    alone = next(each for each in schema.applications if each.name == "predictor-alone")
    assert PredictorArgs.model_validate(alone.args).options["num_replicas"] == 3
    assert alone.route_prefix == "/v2/models/alone"


def test_only_a_new_release_changes_the_config(schema: ServeDeploySchema) -> None:
    again = ServeDeploySchema.model_validate(
        serve_config(
            Profile.model_validate({"models": {"alone": {"num_replicas": 3}, "free": {}}}), PLACED, "r1"
        )
    )
    assert again == schema
    other = serve_config(Profile(), PLACED, "r2")
    assert all(each["args"]["release"] == "r2" for each in other["applications"])


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        PredictorArgs.model_validate({"modle": "late"})


@pytest.mark.ray
def test_a_task_that_builds_an_application_steps_back_for_replicas(
    shared_ray: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_ray(2)
    store = f"file://{tmp_path}/store"

    @ray.remote(num_cpus=0, max_calls=1, runtime_env={"env_vars": {"TOQUE_STORE": store}})
    def niceness(builds: str) -> int:
        if builds:
            ticker({})
        return os.nice(0)

    usual, of_build = ray.get([niceness.remote(""), niceness.remote("ticker")])
    assert of_build == min(usual + 10, 19)
    monkeypatch.setenv("TOQUE_STORE", store)
    before = os.nice(0)
    ticker({})
    assert os.nice(0) == before
