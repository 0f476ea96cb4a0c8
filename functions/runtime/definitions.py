"""Definitions of a user's project, found by name: the module that declares `FEATURES` and `MODELS` is imported by its name.

Knows that a definition has a name, and no more: a caller annotates what it gets with a Protocol of the attributes it reads,
as in `definition: HasAlerts = model_definition(context().project, "late")`. `toque.functions.project` says what a model may declare.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, TypeVar

_Definition = TypeVar("_Definition")


class ProjectError(ValueError):
    """Raised if a project's module does not declare what it must; the message says what and where."""


@dataclass(frozen=True, slots=True)
class Declarations:
    """Definitions that a project's module declares. features: in the order in which to apply them; models: by name."""

    module: str
    features: tuple[Any, ...]
    models: dict[str, Any]


def declarations(module: str | None) -> Declarations:
    """Import a project's module and read its FEATURES and MODELS; both are empty where it declares neither.

    Raises: ProjectError if none is set, it cannot be imported, it declares one of them only, or two models share a name.
    """
    if not module:
        raise ProjectError("no project is set; set TOQUE_PROJECT to its module, as in 'examples.flights'")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the project itself was found and misses something else: that message says more
        raise ProjectError(f"no module {module!r}; TOQUE_PROJECT names a module on sys.path") from error
    if not (hasattr(found, "FEATURES") or hasattr(found, "MODELS")):
        return Declarations(module, (), {})
    features, models = getattr(found, "FEATURES", None), getattr(found, "MODELS", None)
    if not isinstance(features, list | tuple) or not isinstance(models, list | tuple):
        raise ProjectError(
            f"{module} must declare FEATURES (a list of definitions) and MODELS (a list of ModelDefinition)"
        )
    return Declarations(module, tuple(features), _by_name(module, models))


def model_definition(module: str | None, name: str) -> Any:
    """Find the definition of one model of a project. Raises: ProjectError, naming the models there are."""
    return pick(declarations(module).models, name, module)


def pick(models: dict[str, _Definition], name: str, module: str | None) -> _Definition:
    """Take one model's definition out of those of a module. Raises: ProjectError, naming the models there are."""
    if name not in models:
        raise ProjectError(f"{module}.MODELS has no {name!r}; it has {sorted(models) or 'none'}")
    return models[name]


def _by_name(module: str, models: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    for definition in models:
        name = getattr(definition, "name", None)
        if not isinstance(name, str):
            raise ProjectError(f"{module}.MODELS holds {definition!r}, which is no ModelDefinition")
        if name in by_name:
            raise ProjectError(f"{module}.MODELS has two models called {name!r}; rename one")
        by_name[name] = definition
    return by_name
