"""Definitions of a project, found by name without knowing their type."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

import toque.functions.project
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
