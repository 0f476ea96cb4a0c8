"""Catalog of declared functions, filled by importing their modules and searched by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from toque.clusters.did_you_mean import did_you_mean
from toque.functions.runtime.definitions import import_project
from toque.functions.runtime.errors import UnknownFunction
from toque.functions.runtime.reference import current_reference, resolve
from toque.functions.runtime.run.declared import DeclaredFunction

RESOURCES = tuple(
    f"toque.functions.resources.{name}" for name in ("invocations", "models", "runs", "traffic")
)
"""Modules of functions that declare routes, which a gateway imports at once."""
PLATFORM = (
    *RESOURCES,
    "toque.functions.features.jobs",
    "toque.functions.generative.jobs",
    "toque.functions.maintenance.compaction",
    "toque.functions.maintenance.costs",
    "toque.functions.maintenance.erasure.jobs",
    "toque.functions.maintenance.features",
    "toque.functions.maintenance.history",
    "toque.functions.maintenance.registry",
    "toque.functions.maintenance.retention",
    "toque.functions.training",
    "toque.functions.training_data.jobs",
    "toque.functions.tuning.jobs",
    "toque.functions.evaluation.offline_gate",
    "toque.functions.evaluation.language.jobs",
    "toque.functions.evaluation.batch_inference",
    "toque.functions.evaluation.log_replay",
    "toque.functions.prediction_log.jobs",
    "toque.functions.retrieval.jobs",
    "toque.functions.monitoring.jobs",
    "toque.functions.monitoring.language.jobs",
    "toque.functions.alerting.jobs",
    "toque.functions.rollout",
    "toque.functions.retraining.jobs",
    "toque.functions.quotas",
    "toque.functions.reporting",
    "toque.functions.reporting.feature_page",
)

_declared: dict[str, dict[str, DeclaredFunction]] = {}  # name -> reference -> function


def declare(function: DeclaredFunction) -> None:
    """Add a function to the catalog, in place of an earlier one with the same reference."""
    named = _declared.setdefault(function.name, {})
    for reference in [each for each in named if "<locals>" in each]:
        del named[reference]  # a function made within another is reachable only as the latest of its name
    named[function.reference] = function


def discover(modules: Iterable[str] = PLATFORM, *, project: str | None = None) -> list[DeclaredFunction]:
    """Import the modules, and the user's `project`, and return every function declared so far.

    Raises: ImportError if one of the modules cannot be imported; ProjectError if the project cannot.
    """
    for module in modules:
        importlib.import_module(module)
    if project:
        import_project(project)
    return all_functions()


def all_functions() -> list[DeclaredFunction]:
    """List every declared function, sorted by name."""
    return [function for name in sorted(_declared) for function in _declared[name].values()]


def find(name: str) -> DeclaredFunction | None:
    """Find the function called `name` or `module:qualname`, importing that module; None if it is not declared.

    For names that the platform recorded; what a stranger names goes to `find_declared`, which imports nothing.
    Raises: UnknownFunction if several modules declare that name.
    """
    return find_declared(name) or (_resolve_declared(name) if ":" in name else None)


def find_declared(
    name: str, *, where: Callable[[DeclaredFunction], bool] = lambda _: True
) -> DeclaredFunction | None:
    """Find the function called `name` or `module:qualname` among those declared so far; None if it is not there.

    where: whether a function is looked at; the others are as if they were not declared.
    Raises: UnknownFunction if several modules declare that name.
    """
    if ":" in name:
        found = _declared.get(name.rpartition(":")[2].rpartition(".")[2], {}).get(current_reference(name))
        return found if found is not None and where(found) else None
    named = {reference: each for reference, each in _declared.get(name, {}).items() if where(each)}
    if len(named) > 1:
        raise UnknownFunction(
            f"{name!r} is declared more than once: {', '.join(sorted(named))}; name one of these"
        )
    return next(iter(named.values()), None)


def get(name: str) -> DeclaredFunction:
    """Return the function called `name`. Raises: UnknownFunction, with the name that is closest."""
    function = find(name)
    if function is None:
        raise UnknownFunction(
            f"there is no function {name!r}; {did_you_mean(name, sorted(_declared))}`toque functions` lists those of the platform, "
            "and of the project that TOQUE_PROJECT names"
        )
    return function


def _resolve_declared(name: str) -> DeclaredFunction | None:
    """Import the module of `module:qualname` and find the function that it declared."""
    if name.startswith("__main__:") or "<locals>" in name:
        return None
    found = resolve(name)
    declared = _declared.get(getattr(found, "name", ""), {}).values()
    return next((function for function in declared if function is found), None)
