"""The public names of the platform in one place, and its command: `from toque import FeatureView, ModelDefinition`.

In a checkout the rooms (`featurestore`, `functions`, …) lie beside this package. In an installed wheel they lie below it, in
`toque/rooms`, and no file of theirs can be mixed with another distribution's of the same name; `toque.pth` puts that folder at
the end of the path, and the command puts it first.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_ROOMS = Path(__file__).parent / "rooms"
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


def main() -> int:
    """Run the command `toque`; exit code 1 where another package hides one of ours."""
    hidden = foreign_packages(_ROOMS, sys.path)
    if hidden:
        for name, place in sorted(hidden.items()):
            sys.stderr.write(
                f"toque: {place} is a package called {name!r}, as one of Toque's: install Toque in a virtual environment "
                "without it, or rename it if it is yours\n"
            )
        return 1
    if _ROOMS.is_dir():
        sys.path.insert(0, str(_ROOMS))
    code: int = import_module("ray_apps.cli").main()
    return code


def foreign_packages(rooms: Path, path: list[str]) -> dict[str, str]:
    """Find packages on `path` that have the name of one in `rooms` and are not it, with their places."""
    elsewhere = [
        place or str(Path.cwd()) for place in path if Path(place or ".").resolve() != rooms.resolve()
    ]
    names = [folder.parent.name for folder in rooms.glob("*/__init__.py")]
    found = {name: PathFinder.find_spec(name, elsewhere) for name in names}
    return {name: spec.origin for name, spec in found.items() if spec is not None and spec.origin is not None}


def __getattr__(name: str) -> Any:
    """Import a public name from the room that has it, when it is first asked for."""
    if name.startswith("_"):
        raise AttributeError(name)
    for face in _FACES:
        module = import_module(face)
        if name in getattr(module, "__all__", ()):
            return getattr(module, name)
    raise AttributeError(f"toque has no {name!r}; its public names are those of {', '.join(_FACES)}")
