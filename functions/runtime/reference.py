"""References `module:qualname` by which another process finds a function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache, reduce
from typing import Any

from ray import cloudpickle

from toque.functions.runtime.errors import UnknownFunction

# Modules of release 0.1, below `functions`, that declared functions, and where these are: journals have their references.
_MOVED = {
    "alerts": "alerting.jobs",
    "batch_inference": "evaluation.batch_inference",
    "evaluation.offline": "evaluation.offline_gate",
    "feature_maintenance": "maintenance.features",
    "features": "features.jobs",
    "features_report": "reporting.feature_page",
    "registry_maintenance": "maintenance.registry",
    "retraining": "retraining.jobs",
    "rollout.planning": "rollout.planning.jobs",
    "training.recipe": "training.recipe.train",
    "training.tabular": "training.tabular.train",
    "tuning": "tuning.jobs",
}


def resolve(name: str) -> Any:
    """Import the object that `module:qualname` names.

    A module path of the release before stands for the one that replaced it: journals hold such references.
    Raises: UnknownFunction if the module or the name in it is not there.
    """
    module, _, path = current_reference(name).partition(":")
    try:
        return reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UnknownFunction(f"{name} cannot be imported: {error}; is its code on this machine?") from error


def current_reference(name: str) -> str:
    """Replace the module in a reference `module:qualname` that release 0.1 wrote by the one that has the function today."""
    module, colon, path = name.partition(":")
    room, _, inside = module.partition(".")
    if room != "functions" or not inside:
        return name
    here = f"toque.functions.{_MOVED.get(inside, inside)}"
    return f"{here}{colon}{path}" if importable(here) else name  # a user's own package may have this name


def travels_by_name(target: Callable[..., Any]) -> bool:
    """Whether another process can import `target`; if not, its code is pickled by value.

    A module that only this process can import (a script, a test) is then pickled by value as a whole.
    """
    module = sys.modules.get(target.__module__)
    if module is None or target.__module__ == "__main__":
        return False
    if not importable(target.__module__):
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]  # the library has no types
        return False
    return "<locals>" not in target.__qualname__


@cache
def importable(module: str) -> bool:
    """Whether the import system finds `module`, which may be in this process's `sys.modules` alone."""
    path = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = next(
            filter(None, (each.find_spec(".".join(parts[:end]), path) for each in sys.meta_path)), None
        )
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def pack(value: Any) -> bytes:
    """Pickle a value for another process of ours, with the code that it cannot import."""
    data: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call]  # the library has no types
    return data


def unpack(data: bytes) -> Any:
    """Unpickle a value from another process of ours; never use it on data from a store or the network."""
    return cloudpickle.loads(data)
