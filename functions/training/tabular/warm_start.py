"""Where a training begins instead of at random weights: network, preprocessing and target of a registered version."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE
from functions.model_formats.program import load_program
from functions.training.errors import TrainingDataError
from functions.training.params import TabularParams
from functions.training.tabular.network import TabularNet
from functions.training.tabular.preprocessing import Preprocessing
from functions.training.tabular.target import Number, OneOf, Target
from registry import Registry

_SHAPE = ("task", "hidden", "embedding_dim", "bins")  # what a network's weights are the shape of
_PREPROCESSING = ("center", "inverse_scale", "left", "inverse_width", "vocabulary")


@dataclass(frozen=True, slots=True)
class Start:
    """The weights (by name in the network) of `version`, and what its target knew."""

    version: int
    weights: dict[str, Tensor]
    target: dict[str, Any]

    def preprocessing(self) -> Preprocessing:
        """That of the version: what its weights mean hangs on it. A category it does not know stays unknown."""
        return Preprocessing(*(self.weights[f"preprocessing.{name}"].clone() for name in _PREPROCESSING))

    def load(self, net: TabularNet) -> None:
        """Put the weights into a network of the same shape."""
        net.load_state_dict(self.weights)

    def kept(self, target: Target) -> Target:
        """The version's target, if `target`, which is that of the new rows, is of the same classes.

        Raises: TrainingDataError if it is not.
        """
        if isinstance(target, Number):
            return Number(self.target["center"], self.target["scale"])
        if isinstance(target, OneOf) and list(target.classes) != list(self.target["classes"]):
            raise TrainingDataError(
                f"the label has the classes {list(target.classes)[:20]}, version {self.version} those of "
                f"{list(self.target['classes'])[:20]}: a warm start needs the same; train without start_from"
            )
        return target


def start_from(
    registry: Registry,
    model: str,
    version: int,
    *,
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: TabularParams,
) -> Start:
    """Read a version to begin from.

    Raises: NotFound; TrainingDataError if it is no tabular model, or of other columns or another shape; ArtifactRefused.
    """
    with tempfile.TemporaryDirectory(prefix="toque-start-") as folder:
        registry.download(model, version, to=folder)
        description, before = _described(Path(folder) / DESCRIPTION_FILE, f"{model}@{version}")
        program = load_program((Path(folder) / PROGRAM_FILE).read_bytes())
    inputs = {spec["name"]: spec["columns"] for spec in description["signature"]["inputs"]}
    given = {"numeric": list(numeric), "categorical": list(categorical)}
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
    return Start(version, weights, description.get("target", {}))


def _described(path: Path, name: str) -> tuple[dict[str, Any], TabularParams]:
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
