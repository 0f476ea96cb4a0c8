import itertools

import numpy as np
import pytest
from scipy import stats

from toque.functions.stats.estimate import (
    Calibration,
    Estimate,
    ScoreSketch,
    estimate_auc,
    estimate_losses,
    realise,
)

P = np.array([0.9, 0.8, 0.3, 0.1, 0.3])
C = np.array([0.95, 0.6, 0.4, 0.05, 0.2])


def labelings() -> list[tuple[float, np.ndarray]]:
    """Every way the labels may fall, with its probability under C."""
    ways = [np.array(y, float) for y in itertools.product([0, 1], repeat=len(C))]
    return [(float(np.prod(np.where(y == 1, C, 1 - C))), y) for y in ways]


def test_losses_by_hand():
    found = estimate_losses([0.9, 0.8, 0.3, 0.1], [0.9, 0.8, 0.3, 0.1])
    assert found["accuracy"].mean == pytest.approx((0.9 + 0.8 + 0.7 + 0.9) / 4)
    assert found["brier"].mean == pytest.approx((0.09 + 0.16 + 0.21 + 0.09) / 4)  # p(1 - p) each
    assert found["log_loss"].mean == pytest.approx(
        np.mean(stats.entropy([[0.9, 0.8, 0.3, 0.1], [0.1, 0.2, 0.7, 0.9]]))
    )


def test_mean_and_error_are_those_over_all_ways_the_labels_may_fall():
    found = estimate_losses(P, C)
    for name, one in found.items():
        values = [realise(P, y)[name] for _, y in labelings()]
        weights = [weight for weight, _ in labelings()]
        mean = np.average(values, weights=weights)
        assert one.mean == pytest.approx(mean)
        assert one.error == pytest.approx(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
        assert one.n == 5


def test_auc_is_expected_concordance_over_expected_pairs():
    concordant = pairs = 0.0
    for weight, y in labelings():
        for i, j in itertools.product(np.flatnonzero(y == 1), np.flatnonzero(y == 0)):
            pairs += weight
            concordant += weight * (1.0 if P[i] > P[j] else 0.5 if P[i] == P[j] else 0.0)
    assert estimate_auc(P, C) == pytest.approx(concordant / pairs)
    with pytest.raises(ValueError, match="both classes"):
        estimate_auc([0.2, 0.3], [1.0, 1.0])


def test_a_calibration_is_the_isotonic_regression_of_labels():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 2, 20_000)
    y = (rng.random(20_000) < p**2).astype(float)  # overstated everywhere between
    halves = ScoreSketch.of(p[:9_000], y[:9_000]) + ScoreSketch.of(p[9_000:], y[9_000:])
    assert halves.rows == ScoreSketch.of(p, y).rows
    calibrated = halves.calibration()(p)
    assert np.abs(calibrated - p**2).mean() < 0.02
    assert (np.diff(calibrated[np.argsort(p)]) >= 0).all()
    served = estimate_losses(p, Calibration()(p))["log_loss"]
    better = estimate_losses(p, calibrated)["log_loss"]
    assert abs(better.z(realise(p, y)["log_loss"])) < 4 < abs(served.z(realise(p, y)["log_loss"]))


def test_estimates_of_a_right_model_cover_what_is_realised():
    # 400 runs: |z| > 1.96 in 5 % + 4 s.e.
    rng = np.random.default_rng(1)
    beyond = 0
    for _ in range(400):
        p = rng.beta(1, 3, 300)
        beyond += (
            abs(estimate_losses(p, p)["log_loss"].z(realise(p, (rng.random(300) < p) * 1.0)["log_loss"]))
            > 1.96
        )
    assert beyond / 400 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_losses([], []), "at least one row"),
        (lambda: estimate_losses([0.5, np.nan], [0.5, 0.5]), r"in \[0, 1\]"),
        (lambda: ScoreSketch.of([0.5], [2.0]), "labels are 0 or 1"),
        (lambda: ScoreSketch().calibration(), "needs labelled rows"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_certain_estimate_is_infinitely_far_from_anything_else():
    assert Estimate(1, 0.0, 0.0).z(0.1) == np.inf
