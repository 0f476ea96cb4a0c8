"""Hook that each worker process of a platform calls first: pandas is imported by whoever uses it, and by nobody else.

Two libraries import pandas if it is there, only to ask whether a value is a data frame: Serve's encoder of answers, and Arrow with its
first array. That took 35 to 70 MB and half a second of CPU in each process, where nothing of ours is a data frame. Whoever imports
pandas later gets it, Arrow and what it converts to data frames included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

WITHOUT = "pandas"
_ARROW = "pyarrow.lib"
_WITHOUT_PANDAS = frozenset({"ray.serve._private.utils", _ARROW, "pyarrow._compute", "pyarrow._dataset"})


def lighten() -> None:
    """Have the modules that would import pandas believe that it is not installed, while they are imported."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finder of these modules, with a loader of its own, and of pandas, which it hides meanwhile."""

    def __init__(self) -> None:
        self._hidden = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of the modules as Python would, to be loaded without pandas; None for all others.

        Raises: ModuleNotFoundError for pandas while it is hidden.
        """
        if fullname == WITHOUT and self._hidden:
            raise ModuleNotFoundError(f"No module named {WITHOUT!r}", name=WITHOUT)
        if fullname not in _WITHOUT_PANDAS and fullname != WITHOUT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = self._with_pandas if fullname == WITHOUT else self._without_pandas
            spec.loader = _Loader(spec.loader, load)
        return spec

    def _without_pandas(self, execute: Callable[[], None]) -> None:
        """Execute a module while pandas is hidden, unless somebody imports it or has it."""
        if WITHOUT in sys.modules:
            execute()
            return
        with self._hiding():
            execute()
            if (arrow := sys.modules.get(_ARROW)) is not None and hasattr(arrow, "_pandas_api"):
                _ = arrow._pandas_api.have_pandas  # noqa: SLF001  # asked once, and never again of itself

    @staticmethod
    def _with_pandas(execute: Callable[[], None]) -> None:
        """Execute pandas, and let Arrow ask anew."""
        execute()
        arrow = sys.modules.get(_ARROW)
        if arrow is not None:
            arrow._pandas_api.__init__()  # noqa: SLF001  # it has no other way to forget

    @contextmanager
    def _hiding(self) -> Iterator[None]:
        self._hidden += 1
        try:
            yield
        finally:
            self._hidden -= 1


class _Loader(Loader):
    """Loader that does what another one does, and something around it."""

    def __init__(self, own: Loader, load: Callable[[Callable[[], None]], None]) -> None:
        self._own, self._load = own, load

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as its own loader does, without pandas or with what follows from it."""
        self._load(lambda: self._own.exec_module(module))
