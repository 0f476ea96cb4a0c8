"""Definitions of a user's project, found by name: the module that declares `FEATURES` and `MODELS` is imported by its name.

Knows that a definition has a name, and no more: a caller annotates what it gets with a Protocol of the attributes it reads,
as in `definition: HasAlerts = model_definition(context().project, "late")`. `toque.functions.project` says what a model may declare.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
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
    found = import_project(module)
    if not (hasattr(found, "FEATURES") or hasattr(found, "MODELS")):
        return Declarations(module, (), {})
    features, models = getattr(found, "FEATURES", None), getattr(found, "MODELS", None)
    if not isinstance(features, list | tuple) or not isinstance(models, list | tuple):
        raise ProjectError(
            f"{module} must declare FEATURES (a list of definitions) and MODELS (a list of ModelDefinition)"
        )
    return Declarations(module, tuple(features), _by_name(module, models))


def import_project(module: str) -> ModuleType:
    """Import the module of a user's project. Raises: ProjectError if it is not there, or fails: with file, line and error."""
    with importing_project(module):
        return importlib.import_module(module)


@contextmanager
def importing_project(module: str) -> Iterator[None]:
    """Turn an error of a project's own code, while something imports it, into one that says where to look.

    Raises: ProjectError with the file and the line of the project, the error, and what to do.
    """
    try:
        yield
    except ProjectError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ProjectError(
                f"no module {module!r} can be imported; TOQUE_PROJECT or --project names one in this folder or on PYTHONPATH"
            ) from error
        raise ProjectError(_import_failure(module, error)) from error
    except (Exception, SystemExit) as error:
        raise ProjectError(_import_failure(module, error)) from error


def _import_failure(module: str, error: BaseException) -> str:
    """Say which line of a project stopped its import, by what error, and what to do."""
    what = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    remedy = "correct that line"
    if isinstance(error, ModuleNotFoundError):
        remedy = "install the package that has it, or correct the name"
    elif isinstance(error, ImportError):
        remedy = "correct the name, or install the version of the package that has it"
    elif isinstance(error, SystemExit):
        what, remedy = "it ends the process", "keep what runs under `if __name__ == '__main__':`"
    return (
        f"project {module!r} cannot be imported: {_place_of(module, error)}: {what}; {remedy}; "
        f"`python -c 'import {module}'` in the project's folder shows the whole traceback"
    )


def _place_of(module: str, error: BaseException) -> str:
    """File and line of the project at which its import failed; of the last line of any code if none is the project's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    spec = PathFinder.find_spec(module.partition(".")[0])
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = [Path(spec.origin)] if spec and spec.origin else []
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [
        frame
        for frame in frames
        if Path(frame.filename) in files
        or any(Path(frame.filename).is_relative_to(folder) for folder in folders)
    ]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}"


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
