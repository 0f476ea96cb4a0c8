"""Model files as MLflow's flavors write them, under the names by which they are served."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from functions.model_formats.errors import ArtifactRefused
from functions.model_formats.flavors import SKOPS_FILE
from functions.model_formats.formats import PROGRAM_FILE

_log = logging.getLogger(__name__)
_NAMES = {"lightgbm": "model.txt", "xgboost": "model.ubj", "onnx": "model.onnx"}
_PLACES = {"sklearn": "pickled_model"}  # the key that names the file, else `data`


def name_as_served(folder: Path) -> None:
    """Copy the model file that MLmodel names to the name by which it is served, where MLflow calls it otherwise.

    The client reads its own name again; both are one blob in the store. A program of torch is copied without what
    `torch.export.save` pickles beside it. Without an MLmodel nothing is done.
    """
    file = folder / "MLmodel"
    content = yaml.safe_load(file.read_text()) if file.is_file() else None
    flavors: dict[str, Any] = content.get("flavors", {}) if isinstance(content, dict) else {}
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
    from functions.model_formats.program import without_samples  # late: it needs torch

    source = _within(folder, logged)
    if source is None:
        return
    try:
        (folder / PROGRAM_FILE).write_bytes(without_samples(source.read_bytes()))
    except ArtifactRefused as error:  # operators of the user's own, say
        _log.warning("%s cannot be served: %s", logged, error)


def _within(folder: Path, name: str) -> Path | None:
    """Find a file by its name in a folder, and not outside it."""
    source = (folder / name).resolve()
    return source if source.is_file() and source.is_relative_to(folder.resolve()) else None
