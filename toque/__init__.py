"""An AI platform made of small serverless functions on Ray: `from toque import FeatureView, ModelDefinition`.

The rooms (`toque.registry`, `toque.functions`, …) are folders at the top of the repository, to which links in this folder lead;
an installed package has the folders themselves here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACES = (
    "featurestore",
    "functions",
    "functions.project",
    "functions.features",
    "functions.training",
    "functions.evaluation",
    "functions.monitoring",
    "functions.rollout",
    "functions.retraining.policy",
    "registry",
)


def __getattr__(name: str) -> Any:
    """Import a public name from the room that has it, when it is first asked for."""
    if name.startswith("_"):
        raise AttributeError(name)
    for face in _FACES:
        module = import_module(f"toque.{face}")
        if name in getattr(module, "__all__", ()):
            return getattr(module, name)
    raise AttributeError(f"toque has no {name!r}; its public names are those of {', '.join(_FACES)}")
