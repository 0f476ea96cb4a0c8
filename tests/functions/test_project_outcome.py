"""What has no meaning for an outcome is refused when a model is declared, by the table that docs/outcomes.md shows."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from toque.functions.evaluation import Direction, FairnessRule, Gate, RobustnessRule, SliceRule
from toque.functions.evaluation.meanings import MEANINGS, Aspect, Loss, Outcome
from toque.functions.monitoring import EstimateMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.rollout import RolloutPolicy
from toque.functions.training import Sklearn

SETTINGS: dict[Aspect, Any] = {
    "gate.max_ece": {"gate": Gate(max_ece=0.05)},
    "gate.max_ece_high": {"gate": Gate(max_ece_high=0.05)},
    "gate.min_auc": {"gate": Gate(min_auc=0.6)},
    "gate.slices": {"gate": Gate(slices=SliceRule(columns=("a",)))},
    "gate.fairness": {"gate": Gate(fairness=(FairnessRule(column="a", max_gap=0.1),))},
    "gate.robustness": {"gate": Gate(robustness=RobustnessRule())},
    "gate.behaviours": {"gate": Gate(behaviours=(Direction(column="a", change=1.0, expected="up"),))},
    "monitor.estimate": {"monitors": (EstimateMonitor(),)},
}


def make() -> Any:
    """Stands for a factory of estimators, which a declaration does not call."""


def declared(outcome: Outcome, **changes: Any) -> ModelDefinition:
    return ModelDefinition(
        name="m",
        entities="rows",
        label="y",
        numeric=("a",),
        outcome=outcome,
        trainer=Sklearn(make=make),
        **{"group": "q" if outcome == "ranking" else "", **changes},
    )


@pytest.mark.parametrize("outcome", MEANINGS)
@pytest.mark.parametrize("aspect", get_args(Aspect))
def test_a_setting_is_taken_or_refused_as_the_table_says(outcome: Outcome, aspect: Aspect) -> None:
    remedy = MEANINGS[outcome].refused.get(aspect)
    if remedy is None:
        declared(outcome, **SETTINGS[aspect])
        return
    with pytest.raises(ValidationError) as refused:
        declared(outcome, **SETTINGS[aspect])
    assert remedy in str(refused.value)
    assert aspect.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("outcome", MEANINGS)
@pytest.mark.parametrize("loss", get_args(Loss))
def test_rollout_and_monitors_take_the_losses_of_the_outcome_only(outcome: Outcome, loss: Loss) -> None:
    losses = MEANINGS[outcome].losses
    made = declared(outcome)
    assert made.performance is not None
    assert made.rollout.loss == made.performance.loss == losses[0]
    changes: tuple[Any, ...] = (
        {"rollout": RolloutPolicy(loss=loss)},
        {"monitors": (PerformanceMonitor(loss=loss),)},
    )
    for each in changes:
        if loss in losses:
            declared(outcome, **each)
        else:
            with pytest.raises(ValidationError, match=f"use '{losses[0]}'"):
                declared(outcome, **each)


def test_only_a_ranking_names_a_column_of_requests_and_popularity() -> None:
    with pytest.raises(ValidationError, match="name the column of requests, group="):
        declared("ranking", group="")
    with pytest.raises(ValidationError, match="leave group out"):
        declared("count", group="q")
    popular = Gate(max_log_loss_ratio={"popularity": 1.0}, item="a")
    assert declared("ranking", gate=popular).gate == popular
    with pytest.raises(ValidationError, match="'popularity' is a baseline of rankings"):
        declared("count", gate=popular)
    with pytest.raises(ValidationError, match="needs the column of the item"):
        Gate(max_log_loss_ratio={"popularity": 1.0})
