"""Module paths of the release before: importable for one more release, each with a DeprecationWarning.

Each package of Toque keeps a table of its own (`featurestore/renamed.py`, `functions/renamed.py`, …) and installs it when it is
imported. An old path gives the very module of the new one, so that classes are the same under both.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def moved(old_package: str, new_package: str, modules: str) -> dict[str, str]:
    """Table of modules that moved together, by full path.

    modules: names separated by spaces; "old=new" where the name changed too.
    """
    pairs = (module.partition("=") for module in modules.split())
    return {f"{old_package}.{old}": f"{new_package}.{new or old}" for old, _, new in pairs}


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller two frames up that the old path it used goes with the next release."""
    warnings.warn(
        f"{old} is now {new}; the old path goes with the next release", DeprecationWarning, stacklevel=3
    )


def install(table: Mapping[str, str]) -> None:
    """Make the old paths of `table` importable in this process."""
    sys.meta_path.append(_RenamedModules(table))


class _RenamedModules(MetaPathFinder):
    """Finds the modules of one table; asked last, so that a module which exists is never shadowed."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = dict(table)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        new = self._table.get(fullname)
        return None if new is None else ModuleSpec(fullname, _NewPath(new))


class _NewPath(Loader):
    """Loads an old path as the module of the new one."""

    def __init__(self, new: str) -> None:
        self._new = new
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warn_renamed(spec.name, self._new)
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just put the old path's there


RENAMED = (
    moved("registry", "registry.store", "folder s3 blobs tables=tables.table")
    | moved(
        "registry.store",
        "registry.store.tables",
        "log_actions row_ranges table_files=files table_history=history table_naming=naming table_parts=parts "
        "table_upkeep=upkeep",
    )
    | moved("registry", "registry.journal", "journal entry fold")
    | moved(
        "registry",
        "registry.models",
        "models model_state=state rules=decisions versions registration governance lineage card=model_card "
        "signature code_files traffic layers matching=traffic.rules shelf=model_journals signed=signed_versions",
    )
    | moved(
        "registry.models",
        "registry.models",
        "pickles=code_files.pickles traffic_preview=traffic.preview traffic_rules=traffic.rules",
    )
    | moved(
        "registry",
        "registry.runs",
        "runs run run_compare=compare run_log=remote_run run_record=record run_search=search "
        "experiments environment",
    )
    | moved("registry", "registry.access", "access=tokens signing")
)

install(RENAMED)
