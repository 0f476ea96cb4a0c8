import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import METRICS, auc, bootstrap, brier, ece, log_loss


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    probability = np.round(generator.random(2_000), 2)  # with ties
    return (generator.random(2_000) < probability).astype(float), probability


def test_metrics_agree_with_scikit_learn(rows):
    label, probability = rows
    assert log_loss(label, probability) == pytest.approx(
        sklearn_log_loss(label, np.clip(probability, 1e-7, 1 - 1e-7)), rel=1e-9
    )
    assert auc(label, probability) == pytest.approx(roc_auc_score(label, probability), rel=1e-9)
    assert brier(label, probability) == pytest.approx(brier_score_loss(label, probability), rel=1e-9)


def test_known_values_by_hand():
    label, probability = np.array([1.0, 0.0]), np.array([0.8, 0.4])
    assert log_loss(label, probability) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert auc(label, probability) == 1.0
    assert auc(label, np.array([0.5, 0.5])) == 0.5
    # two bins of one row each: gaps of .2 and .4
    assert ece(label, probability) == pytest.approx(0.3)
    assert ece(np.array([1.0, 0.0]), np.array([0.5, 0.5]), bins=1) == 0.0


def test_a_calibrated_forecast_has_less_error_than_one_that_is_shifted(rows):
    label, probability = rows
    assert ece(label, probability) < 0.05
    assert ece(label, np.clip(probability + 0.2, 0, 1)) > 0.1


def test_a_certain_error_costs_much_and_not_infinity():
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("label", "probability", "says"),
    [
        ([], [], "at least one"),
        ([1.0], [0.5, 0.5], "as many labels"),
        ([1.0, 0.0], [0.5, math.nan], "1 of 2 probabilities are no numbers"),
        ([1.0, 0.0], [0.5, 1.5], "no numbers in"),
        ([1.0, 2.0], [0.5, 0.5], "0 or 1"),
        ([1.0, math.nan], [0.5, 0.5], "0 or 1"),
    ],
)
def test_no_metric_returns_a_number_where_it_is_undefined(name, label, probability, says):
    with pytest.raises(EvaluationError, match=says):
        METRICS[name](np.array(label), np.array(probability))


def test_auc_of_one_class_is_refused():
    with pytest.raises(EvaluationError, match="needs both classes"):
        auc(np.ones(3), np.array([0.1, 0.2, 0.3]))


def test_bootstrap_intervals_cover_as_often_as_they_say():
    # Brier score of p = .3 forecasts at rate .3 is .21; 95 % intervals, 100 draws of 300 rows:
    # coverage >= .95 - 4 s.e. = .863
    covered = 0
    for seed in range(100):
        label = (np.random.default_rng(seed).random(300) < 0.3).astype(float)
        interval = bootstrap(brier, label, np.full(300, 0.3), rounds=100, seed=seed)
        assert interval.low <= interval.estimate <= interval.high
        covered += interval.low <= 0.21 <= interval.high
    assert covered >= 86


def test_bootstrap_draws_again_where_a_resample_has_one_class_only():
    label = np.array([1.0, 0.0, 0.0, 0.0])
    interval = bootstrap(auc, label, np.array([0.9, 0.1, 0.2, 0.95]), rounds=20)
    assert interval.low <= 2 / 3 <= interval.high
    with pytest.raises(EvaluationError):
        bootstrap(auc, np.ones(4), np.full(4, 0.5))
