"""Model files that an MLflow client logged, under the names by which they are served; and types that nobody trusts."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from functions.model_formats.flavors import SKOPS_FILE, untrusted_types
from registry import InvalidInput, NotFound, Registry

_NAMES = {"lightgbm": "model.txt", "xgboost": "model.ubj", "onnx": "model.onnx"}
_PLACES = {"sklearn": "pickled_model"}  # the key that names the file, else `data`


def name_as_served(folder: Path) -> None:
    """Copy the model file that MLmodel names to the name by which it is served, where MLflow calls it otherwise.

    The client reads its own name again; both are one blob in the store.
    """
    file = folder / "MLmodel"
    content = yaml.safe_load(file.read_text()) if file.is_file() else None
    flavors: dict[str, Any] = content.get("flavors", {}) if isinstance(content, dict) else {}
    for flavor, name in {**_NAMES, "sklearn": SKOPS_FILE}.items():
        logged = flavors.get(flavor, {}).get(_PLACES.get(flavor, "data"))
        if not isinstance(logged, str) or (folder / name).exists():
            continue
        source = (folder / logged).resolve()
        wanted = ".skops" if flavor == "sklearn" else ""
        if source.is_file() and source.is_relative_to(folder.resolve()) and source.name.endswith(wanted):
            shutil.copyfile(source, folder / name)


def require_trusted(registry: Registry, model: str, folder: Path) -> None:
    """Check that a file of skops names only types that are safe or that the model's policy trusts. Raises: InvalidInput."""
    path = folder / SKOPS_FILE
    if not path.is_file():
        return
    try:
        trusted = registry.get_model(model).policy.trusted_types
    except NotFound:
        trusted = frozenset()
    with suppress(ImportError):  # without skops nobody serves it here either
        unknown = untrusted_types(path, trusted)
        if unknown:
            raise InvalidInput(
                f"{SKOPS_FILE} holds {unknown}, which skops does not know to be safe, so it could not be served: if you trust "
                f"whoever trained it, have an admin name them in the model's policy, ModelPolicy(trusted_types={unknown}), and "
                "register it again; or let a class in the project's SCORERS load it"
            )
