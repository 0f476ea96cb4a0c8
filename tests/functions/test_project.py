from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, EstimateMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition, ProjectError, load_project
from toque.functions.rollout import RolloutPolicy
from toque.functions.training import TabularParams, XGBoost


def definition(**changes: Any) -> ModelDefinition:
    fields: dict[str, Any] = {
        "name": "late",
        "service": "late",
        "entities": "flights",
        "label": "late",
        "numeric": ("wind",),
        "categorical": ("carrier",),
    }
    return ModelDefinition(**(fields | changes))


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("a_project")
    monkeypatch.setitem(sys.modules, "a_project", module)
    module.FEATURES = []  # type: ignore[attr-defined]
    module.MODELS = [definition()]  # type: ignore[attr-defined]
    return module


def test_a_project_is_loaded_by_the_name_of_its_module(project: ModuleType) -> None:
    loaded = load_project("a_project")
    assert loaded.model("late").numeric == ("wind",)
    with pytest.raises(ProjectError, match=r"has no 'early'; it has \['late'\]"):
        loaded.model("early")


@pytest.mark.parametrize("name", [None, ""])
def test_no_project_says_how_to_set_one(name: str | None) -> None:
    with pytest.raises(ProjectError, match="TOQUE_PROJECT"):
        load_project(name)


def test_a_module_that_is_not_there_or_declares_nothing_is_refused(project: ModuleType) -> None:
    with pytest.raises(ProjectError, match="no module 'not_a_project'"):
        load_project("not_a_project")
    del project.MODELS
    with pytest.raises(ProjectError, match="must declare FEATURES"):
        load_project("a_project")


def test_a_project_may_have_functions_only(project: ModuleType) -> None:
    del project.MODELS
    del project.FEATURES
    assert (load_project("a_project").features, load_project("a_project").models) == ((), {})


def test_two_models_of_one_name_and_strangers_are_refused(project: ModuleType) -> None:
    project.MODELS = [definition(), definition()]  # type: ignore[attr-defined]
    with pytest.raises(ProjectError, match="two models called 'late'"):
        load_project("a_project")
    project.MODELS = ["late"]  # type: ignore[attr-defined]
    with pytest.raises(ProjectError, match="is no ModelDefinition"):
        load_project("a_project")


def test_definitions_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValidationError, match="has no features"):
        definition(numeric=(), categorical=())
    with pytest.raises(ValidationError, match="stands twice"):
        definition(categorical=("wind",))
    with pytest.raises(ValidationError, match="stands twice"):
        definition(label="wind")
    with pytest.raises(ValidationError, match="several monitors of one kind"):
        definition(monitors=(DriftMonitor(), DriftMonitor()))


def test_a_model_of_numbers_takes_the_losses_of_numbers() -> None:
    made = definition(outcome="number")
    assert (made.rollout.loss, made.performance and made.performance.loss) == (
        "squared_error",
        "squared_error",
    )
    assert made.learner == TabularParams(task="regression")


@pytest.mark.parametrize(
    ("outcome", "changes", "named"),
    [
        ("number", {"gate": Gate(min_auc=0.6)}, "gate.min_auc"),
        ("number", {"gate": Gate(max_ece=0.05)}, "gate.max_ece"),
        ("number", {"rollout": RolloutPolicy(loss="log_loss")}, "rollout: loss='log_loss', which needs prob"),
        ("multiclass", {"monitors": (PerformanceMonitor(loss="squared_error"),)}, "use 'log_loss'"),
        ("multiclass", {"monitors": (EstimateMonitor(loss="squared_error"),)}, "use 'log_loss'"),
        ("count", {"rollout": RolloutPolicy(loss="squared_error")}, "use 'poisson_deviance'"),
        ("count", {}, "the tabular network learns binary, multiclass, number, not 'count'"),
        ("count", {"trainer": XGBoost(), "gate": Gate(max_ece=0.05)}, "gate.max_ece: a rate has none"),
    ],
)
def test_what_has_no_meaning_for_an_outcome_is_refused_by_name(
    outcome: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(named)):
        definition(outcome=outcome, **changes)


def test_a_definition_survives_json() -> None:
    made = definition(monitors=(PerformanceMonitor(min_labels=10), DriftMonitor(window=3)))
    again = ModelDefinition.model_validate_json(made.model_dump_json())
    assert again == made
    assert again.performance == PerformanceMonitor(min_labels=10)
    assert again.drift == DriftMonitor(window=3)
