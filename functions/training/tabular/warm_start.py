"""Warm starts of a training, which begins with network, preprocessing and target of a registered version."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from toque.functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE
from toque.functions.model_formats.program import load_program
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.network import TabularNet
from toque.functions.training.tabular.preprocessing import Preprocessing
from toque.functions.training.tabular.target import Multiclass, Regression, Target
from toque.registry import Registry

_SHAPE = ("task", "hidden", "embedding_dim", "bins")  # settings that the shapes of the weights follow from
_PREPROCESSING = ("center", "inverse_scale", "left", "inverse_width", "vocabulary")


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Weights of `version` by their names in the network, and the fields of its target."""

    version: int
    weights: dict[str, Tensor]
    target: dict[str, Any]

    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the version, which its weights depend on; a category that it does not know stays unknown."""
        return Preprocessing(*(self.weights[f"preprocessing.{name}"].clone() for name in _PREPROCESSING))

    def load(self, net: TabularNet) -> None:
        """Put the weights into a network of the same shape; one of before has no line, which then stays at zero."""
        unlined = {name: value for name, value in net.state_dict().items() if name.startswith("line.")}
        net.load_state_dict({**unlined, **self.weights})

    def target_for(self, target: Target) -> Target:
        """Target of the version, to train on rows whose own target is `target`.

        Raises: TrainingDataError if the two have different classes.
        """
        if isinstance(target, Regression):
            return Regression(self.target["center"], self.target["scale"])
        if isinstance(target, Multiclass) and list(target.classes) != list(self.target["classes"]):
            raise TrainingDataError(
                f"the label has the classes {list(target.classes)[:20]}, version {self.version} those of "
                f"{list(self.target['classes'])[:20]}: a warm start needs the same; train without start_from"
            )
        return target


def load_warm_start(
    registry: Registry, model: str, version: int, *, columns: Columns, params: TabularParams
) -> WarmStart:
    """Read the version that a training begins with.

    Raises: NotFound; TrainingDataError if it is no tabular model, or of other columns or another shape; ArtifactRefused.
    """
    with tempfile.TemporaryDirectory(prefix="toque-start-") as folder:
        registry.download(model, version, to=folder)
        description, before = _description(Path(folder) / DESCRIPTION_FILE, f"{model}@{version}")
        program = load_program((Path(folder) / PROGRAM_FILE).read_bytes())
    inputs = {spec["name"]: spec["columns"] for spec in description["signature"]["inputs"]}
    given = {"numeric": list(columns.numeric), "categorical": list(columns.categorical)}
    differ = {
        name: (getattr(before, name), getattr(params, name))
        for name in _SHAPE
        if getattr(before, name) != getattr(params, name)
    }
    if inputs != given or differ:
        raise TrainingDataError(
            f"{model}@{version} reads {inputs}, asked for {given}; settings that differ, as (there, here): {differ}: a warm "
            "start keeps columns and shape; ask for the same or train without start_from"
        )
    weights = {
        name.removeprefix("net."): value.detach().clone()
        for name, value in program.state_dict().items()
        if name.startswith("net.")
    }
    return WarmStart(version, weights, description.get("target", {}))


def _description(path: Path, name: str) -> tuple[dict[str, Any], TabularParams]:
    if not path.is_file():
        raise TrainingDataError(
            f"{name} has no {path.name}: a warm start needs a version that train_tabular made"
        )
    description: dict[str, Any] = json.loads(path.read_text())
    try:
        return description, TabularParams.model_validate(description["params"])
    except (KeyError, ValidationError) as error:
        raise TrainingDataError(
            f"{path.name} of {name} is not one that train_tabular wrote: {error}"
        ) from error
