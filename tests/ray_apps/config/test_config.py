import inspect
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
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


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        PredictorArgs.model_validate({"modle": "late"})
