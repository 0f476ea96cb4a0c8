"""The AUC's standard error against a hand calculation and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from toque.functions.evaluation.metrics.probabilities import auc
from toque.functions.stats.estimate import auc_with_error


def test_by_hand() -> None:
    # positives .4 and .8, negatives .2, .4: .4 is above .2 and ties with .4 (.75), .8 above both (1); negatives: 1 and .75
    found = auc_with_error([1, 1, 0, 0], [0.4, 0.8, 0.2, 0.4])
    assert found == pytest.approx((0.875, np.sqrt(0.125**2 * 2 / 2 + 0.125**2 * 2 / 2)))


def test_the_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.7602499389  # of normals one standard deviation apart: Phi(1 / sqrt 2)
    covered = 0
    for _ in range(400):
        label = (rng.random(300) < 0.3).astype(float)
        score = rng.standard_normal(300) + label
        value, error = auc_with_error(label, score) or (0.0, 0.0)
        assert value == pytest.approx(auc(label, 1 / (1 + np.exp(-score))))
        covered += abs(value - truth) <= 1.96 * error
    assert covered / 400 == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 400))


def test_one_class_has_none_and_lengths_must_fit() -> None:
    assert auc_with_error([1, 1, 1], [0.1, 0.2, 0.3]) is None
    with pytest.raises(ValueError, match="a label for each score"):
        auc_with_error([1, 0], [0.5])
