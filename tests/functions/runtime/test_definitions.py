"""Definitions of a project, found by name without knowing their type."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import toque.functions.project
from toque.functions.runtime import catalog
from toque.functions.runtime.definitions import ProjectError, declarations, model_definition


@dataclass(frozen=True)
class Named:
    name: str


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("named_project")
    monkeypatch.setitem(sys.modules, "named_project", made)
    made.FEATURES, made.MODELS = ["view"], [Named("late"), Named("early")]  # type: ignore[attr-defined]
    return made


def test_a_definition_is_found_by_its_name(module: ModuleType) -> None:
    assert model_definition("named_project", "early") is module.MODELS[1]
    assert declarations("named_project").features == ("view",)


def test_an_unknown_name_is_refused_with_the_known_ones(module: ModuleType) -> None:
    with pytest.raises(
        ProjectError, match=r"named_project.MODELS has no 'on-time'; it has \['early', 'late'\]"
    ):
        model_definition("named_project", "on-time")


def test_a_model_without_a_name_is_refused(module: ModuleType) -> None:
    module.MODELS.append(7)
    with pytest.raises(ProjectError, match="holds 7, which is no ModelDefinition"):
        declarations("named_project")


def test_a_loaded_project_holds_model_definitions_only(module: ModuleType) -> None:
    with pytest.raises(toque.functions.project.ProjectError, match="is no ModelDefinition"):
        toque.functions.project.load_project("named_project")


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of two files, and beside it a package whose name begins the same."""
    for name in ("kitchen", "kit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "kitchen"
    for name in [name for name in sys.modules if name.split(".")[0] in {"kitchen", "kit"}]:
        del sys.modules[name]


BROKEN = {
    "a bracket that nothing closes": ("FEATURES = [\nMODELS = ]\n", "", "__init__.py, line 2: SyntaxError"),
    "a file of the project that is no Python": (
        "\nimport kitchen.parts\n",
        "def (\n",
        "parts.py, line 1: SyntaxError",
    ),
    "indented by tab and by spaces": ("if 1:\n\tx = 1\n        y = 2\n", "", "__init__.py, line 3: TabError"),
    "a package that is missing": (
        "import json\nimport kitc\n",
        "",
        "__init__.py, line 2: ModuleNotFoundError",
    ),
    "a part of its own that is missing": (
        "import kitchen.pots\n",
        "",
        "__init__.py, line 1: ModuleNotFoundError",
    ),
    "a name that a package lacks": (
        "from kitchen import parts\n",
        "\nfrom json import nope\n",
        "parts.py, line 2: ImportError",
    ),
    "an error deep in a library": (
        "import json\n\njson.loads('{')\n",
        "",
        "__init__.py, line 3: JSONDecodeError",
    ),
    "an error of its own": (
        "from kitchen.parts import cook\ncook()\n",
        "def cook():\n    1 / 0\n",
        "parts.py, line 2: ZeroDivisionError",
    ),
    "it ends the process": ("import sys\nsys.exit(0)\n", "", "__init__.py, line 2: it ends the process"),
}


@pytest.mark.parametrize(
    "reader", [declarations, lambda name: catalog.discover((), project=name)], ids=["models", "functions"]
)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_project_that_cannot_be_imported_says_where_and_what_to_do(
    kitchen: Path, broken: str, reader: Callable[[str], object]
) -> None:
    first, second, where = BROKEN[broken]
    (kitchen / "__init__.py").write_text(first)
    (kitchen / "parts.py").write_text(second)
    with pytest.raises(ProjectError, match=re.escape(where)) as raised:
        reader("kitchen")
    assert str(raised.value).startswith(f"project 'kitchen' cannot be imported: {kitchen}/")
    assert "python -c 'import kitchen'" in str(raised.value)
    assert raised.value.__cause__ is not None, "the whole traceback is behind it"


@pytest.mark.parametrize("name", ["kitch", "kitchen.pots", "kitchens"])
def test_a_project_that_is_not_there_is_not_taken_for_a_broken_one(kitchen: Path, name: str) -> None:
    with pytest.raises(ProjectError, match=re.escape(f"no module {name!r} can be imported")):
        declarations(name)
