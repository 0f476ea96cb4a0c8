"""The functions there are: declared by importing their modules, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from functions.runtime.errors import UnknownFunction
from functions.runtime.reference import resolve

if TYPE_CHECKING:
    from functions.runtime.function import Function

PLATFORM = (
    "functions.features",
    "functions.reporting.feature_page",
    "functions.maintenance.features",
    "functions.maintenance.registry",
    "functions.training",
    "functions.tuning",
    "functions.evaluation",
    "functions.evaluation.batch_inference",
    "functions.prediction_log",
    "functions.monitoring",
    "functions.alerting.jobs",
    "functions.rollout",
    "functions.retraining",
    "functions.quotas",
    "functions.reporting",
)

_declared: dict[str, dict[str, Function[..., Any]]] = {}  # name -> reference -> function


def declare(function: Function[..., Any]) -> None:
    """Enter a function; declared again under the same reference, the newer one stands."""
    named = _declared.setdefault(function.name, {})
    for reference in [each for each in named if "<locals>" in each]:
        del named[reference]  # a function made within another is reachable only as the latest of its name
    named[function.reference] = function


def discover(modules: Iterable[str] = PLATFORM, *, project: str | None = None) -> list[Function[..., Any]]:
    """Import the modules, and the user's `project`, and return every function declared so far.

    Raises: ImportError if one of them cannot be imported.
    """
    for module in (*modules, *([project] if project else [])):
        importlib.import_module(module)
    return all_functions()


def all_functions() -> list[Function[..., Any]]:
    """Every declared function, by name."""
    return [function for name in sorted(_declared) for function in _declared[name].values()]


def find(name: str) -> Function[..., Any] | None:
    """The function called `name`, or named `module:qualname`; None if there is none.

    Raises: UnknownFunction if several modules declare one of that name.
    """
    if ":" in name:
        declared = _declared.get(name.rpartition(":")[2].rpartition(".")[2], {}).get(name)
        return declared or _resolved(name)
    named = _declared.get(name, {})
    if len(named) > 1:
        raise UnknownFunction(
            f"{name!r} is declared more than once: {', '.join(sorted(named))}; name one of these"
        )
    return next(iter(named.values()), None)


def get(name: str) -> Function[..., Any]:
    """The function called `name`. Raises: UnknownFunction, listing what there is."""
    function = find(name)
    if function is None:
        known = ", ".join(sorted(_declared)) or "none"
        raise UnknownFunction(
            f"no function {name!r}; declared are: {known}. Is its module imported (TOQUE_PROJECT)?"
        )
    return function


def _resolved(name: str) -> Function[..., Any] | None:
    from functions.runtime.function import Function  # it enters itself here: above, a cycle

    if name.startswith("__main__:") or "<locals>" in name:
        return None
    found = resolve(name)
    return found if isinstance(found, Function) else None
