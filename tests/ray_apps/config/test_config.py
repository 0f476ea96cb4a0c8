import inspect
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

import ray_apps.config
from ray_apps.config.builders import PredictorArgs

FILES = sorted(Path(ray_apps.config.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_serve_accepts_the_file_and_every_builder_takes_its_args(file: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert schema.http_options.host == "127.0.0.1"
    assert len({each.name for each in schema.applications}) == len(schema.applications)
    for application in schema.applications:
        module, _, name = application.import_path.partition(":")
        builder = getattr(import_module(module), name)
        assert len(inspect.signature(builder).parameters) == 1
        if name == "predictor":
            args = PredictorArgs.model_validate(application.args)
            assert application.route_prefix == f"/v2/models/{args.model}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_serve_builds_every_application_of_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOQUE_STORE", f"file://{tmp_path}/store")
    for application in ServeDeploySchema.model_validate(yaml.safe_load(file.read_text())).applications:
        module, _, name = application.import_path.partition(":")
        built = call_user_app_builder_with_args_if_necessary(
            getattr(import_module(module), name), application.args
        )
        assert isinstance(built, Application)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        PredictorArgs.model_validate({"modle": "late"})
