import math

import pytest

from toque.functions.evaluation import Gate, judge

GOOD = {"log_loss": 0.5, "auc": 0.75, "ece": 0.02}
RATIOS = {"constant": 0.9, "logistic": 0.97, "champion": 0.99}


def verdict(gate=None, *, rows=1_000, metrics=GOOD, ratios=RATIOS, has_champion=True):
    checks = judge(gate or Gate(), rows=rows, metrics=metrics, ratios=ratios, has_champion=has_champion)
    return [check.name for check in checks if not check.passed]


def test_a_good_model_passes_every_check():
    gate = Gate(max_champion_ratio=1.0, min_auc=0.7)
    assert verdict(gate) == []
    assert len(judge(gate, rows=1_000, metrics=GOOD, ratios=RATIOS, has_champion=True)) == 6


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"rows": 199}, ["rows"]),
        ({"rows": 0}, ["rows"]),
        ({"metrics": GOOD | {"ece": 0.11}}, ["ece"]),
        ({"metrics": GOOD | {"auc": 0.6}}, ["auc"]),
        ({"ratios": RATIOS | {"logistic": 1.02}}, ["log loss / logistic"]),
        ({"ratios": RATIOS | {"champion": 1.001}}, ["log loss / champion"]),
    ],
)
def test_each_limit_fails_alone(change, failed):
    assert verdict(Gate(max_champion_ratio=1.0, min_auc=0.7), **change) == failed


def test_an_unmeasured_or_nan_value_never_passes():
    gate = Gate(max_champion_ratio=1.0, min_auc=0.7)
    every = ["log loss / constant", "log loss / logistic", "log loss / champion", "ece", "auc"]
    assert verdict(gate, metrics={}, ratios={}) == every
    nan = {"log_loss": math.nan, "auc": math.nan, "ece": math.nan}
    assert verdict(gate, metrics=nan, ratios=dict.fromkeys(RATIOS, math.nan)) == every


def test_the_first_version_has_no_champion_to_beat():
    assert (
        verdict(Gate(max_champion_ratio=1.0), ratios={"constant": 0.9, "logistic": 0.9}, has_champion=False)
        == []
    )


def test_a_gate_refuses_an_unknown_baseline():
    with pytest.raises(ValueError, match="median"):
        Gate(max_log_loss_ratio={"median": 1.0})
