"""Model files as MLflow's flavors write them, under the names by which they are served."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.flavors import SKOPS_FILE
from toque.functions.model_formats.formats import PROGRAM_FILE

_log = logging.getLogger(__name__)
_NAMES = {"lightgbm": "model.txt", "xgboost": "model.ubj", "onnx": "model.onnx"}
_LARGEST_MLMODEL_BYTES = 1 << 20  # parsing takes some seconds a megabyte
_PLACES = {"sklearn": "pickled_model"}  # the key that names the file, else `data`


def read_mlmodel(folder: Path) -> dict[str, Any]:
    """Read the folder's MLmodel; empty if there is none. Raises: ArtifactRefused if it cannot be read, or is larger than any is."""
    file = folder / "MLmodel"
    if not file.is_file():
        return {}
    if file.stat().st_size > _LARGEST_MLMODEL_BYTES:
        raise ArtifactRefused(
            f"MLmodel has {file.stat().st_size:,} bytes: at most {_LARGEST_MLMODEL_BYTES:,} are read"
        )
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactRefused(f"MLmodel cannot be read as YAML: {error}") from error
    flavors = content.get("flavors") or {} if isinstance(content, dict) else None
    if not isinstance(flavors, dict) or not all(isinstance(each, dict) for each in flavors.values()):
        raise ArtifactRefused("MLmodel has no flavors by name, each with settings by name")
    return dict(content)


def name_as_served(folder: Path) -> None:
    """Copy the model file that MLmodel names to the name by which it is served, where MLflow calls it otherwise.

    The client reads its own name again; both are one blob in the store. A program of torch is copied without what
    `torch.export.save` pickles beside it. Without an MLmodel nothing is done. Raises: ArtifactRefused if it cannot be read.
    """
    content = read_mlmodel(folder)
    flavors: dict[str, Any] = content.get("flavors") or {}
    for flavor, name in {**_NAMES, "sklearn": SKOPS_FILE}.items():
        logged = flavors.get(flavor, {}).get(_PLACES.get(flavor, "data"))
        if not isinstance(logged, str) or (folder / name).exists():
            continue
        source = _within(folder, logged)
        wanted = ".skops" if flavor == "sklearn" else ""
        if source is not None and source.name.endswith(wanted):
            shutil.copyfile(source, folder / name)
    data = flavors.get("pytorch", {}).get("model_data")
    if isinstance(data, str) and not (folder / PROGRAM_FILE).exists():
        _copy_program(folder, f"{data}/{PROGRAM_FILE}")


def _copy_program(folder: Path, logged: str) -> None:
    """Copy a program without its pickled parts; one that needs more than tensors is left where it is, and is not served."""
    from toque.functions.model_formats.program import copy_without_samples  # late: it needs torch

    source = _within(folder, logged)
    if source is None:
        return
    try:
        copy_without_samples(source, folder / PROGRAM_FILE)
    except ArtifactRefused as error:  # operators of the user's own, say
        _log.warning("%s cannot be served: %s", logged, error)


def _within(folder: Path, name: str) -> Path | None:
    """Find a file by its name in a folder, and not outside it."""
    source = (folder / name).resolve()
    return source if source.is_file() and source.is_relative_to(folder.resolve()) else None
