"""Estimates of several classes without labels: against every way the labels may fall, and against what is realised."""

import itertools

import numpy as np
import pytest

from toque.functions.stats.estimate import (
    BINS,
    MOST_CLASSES,
    ClassSketch,
    ScoreSketch,
    estimate_class_losses,
    estimate_losses,
    estimate_shares,
    realise_classes,
)

P = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.05, 0.15, 0.8]])
C = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.0, 0.1, 0.9]])


def test_mean_and_error_are_those_over_all_ways_the_labels_may_fall():
    ways = [np.array(y) for y in itertools.product(range(3), repeat=3)]
    weights = [float(np.prod(C[np.arange(3), y])) for y in ways]
    for name, one in estimate_class_losses(P, C).items():
        values = [realise_classes(P, y)[name] for y in ways]
        mean = np.average(values, weights=weights)
        assert one.mean == pytest.approx(mean)
        assert one.error == pytest.approx(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


def test_two_classes_are_a_binary_outcome():
    p, c = np.array([0.9, 0.2, 0.6]), np.array([0.8, 0.3, 0.5])
    two = estimate_class_losses(np.column_stack([1 - p, p]), np.column_stack([1 - c, c]))
    one = estimate_losses(p, c)
    for name in ("log_loss", "accuracy"):
        assert two[name].mean == pytest.approx(one[name].mean)
        assert two[name].error == pytest.approx(one[name].error)
    assert two["brier"].mean == pytest.approx(2 * one["brier"].mean)


@pytest.mark.parametrize("classes", [4, MOST_CLASSES + 5])
def test_calibration_mends_probabilities_that_are_too_sure(classes: int):
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(classes, 0.5), 12_000)
    label = (truth.cumsum(axis=1) > rng.random((12_000, 1))).argmax(axis=1)
    sure = truth**2 / (truth**2).sum(axis=1, keepdims=True)
    sketch = ClassSketch.of(sure[:5_000], label[:5_000]) + ClassSketch.of(
        sure[5_000:9_000], label[5_000:9_000]
    )
    assert bool(sketch.confusion) == (classes <= MOST_CLASSES)
    new, y = sure[9_000:], label[9_000:]
    realised = realise_classes(new, y)["log_loss"]
    served, mended = (estimate_class_losses(new, c)["log_loss"] for c in (new, sketch.calibrate(new)))
    assert abs(mended.learnt_from(9_000).z(realised)) < 4 < abs(served.z(realised))


def test_shares_of_two_classes_are_those_of_rogan_and_gladen():
    # sensitivity 900 / 1000 and specificity 800 / 1000; 41 % are called 1: (0.41 + 0.8 - 1) / (0.9 + 0.8 - 1) = 0.3
    zero, one = estimate_shares([[8_000, 2_000], [1_000, 9_000]], [5_900, 4_100])
    assert one.mean == pytest.approx(0.3, abs=1e-3)
    assert zero.mean + one.mean == pytest.approx(1.0)
    assert one.error == pytest.approx(zero.error)


def test_calls_of_a_sketch_are_those_of_its_rows():
    rng = np.random.default_rng(3)
    p = rng.beta(1, 4, 5_000)
    y = (rng.random(5_000) < p).astype(float)
    sketch = ScoreSketch.of(p, y)
    edge = np.ceil(y.mean() * BINS) / BINS
    called = p >= edge
    expected = [[(~called & (y == k)).sum(), (called & (y == k)).sum()] for k in (0, 1)]
    assert np.array(sketch.confusion()).tolist() == np.array(expected).tolist()
    assert sketch.called(p) == ((~called).sum(), called.sum())


def test_intervals_cover_the_shares_that_come_true_after_a_label_shift():
    # 300 runs: |z| > 1.96 in at most 5 % + 4 s.e. of them, for each class
    rng = np.random.default_rng(1)
    m = np.array([[0.7, 0.2, 0.1], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])  # [true, called]
    beyond = np.zeros(3)
    for _ in range(300):
        confusion = np.array([rng.multinomial(300, row) for row in m])
        realised = rng.multinomial(600, [0.2, 0.2, 0.6])
        called = sum(rng.multinomial(count, row) for count, row in zip(realised, m, strict=True))
        found = estimate_shares(confusion, called)
        beyond += [abs(one.z(count / 600)) > 1.96 for one, count in zip(found, realised, strict=True)]
    assert (beyond / 300 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_class_losses(P, C[:2]), "as many of both"),
        (lambda: estimate_class_losses(P[:, :2], P[:, :2]), "whose sum is 1"),
        (lambda: ClassSketch.of(P, [0, 1, 3]), "classes from 0 to 2"),
        (
            lambda: estimate_shares([[50, 50], [29, 0]], [5, 5]),
            r"30 labelled rows of each class; got 10 rows",
        ),
        (lambda: estimate_shares([[50, 50], [60, 60]], [5, 5]), "do not tell the classes apart"),
        (lambda: estimate_shares([[50, 50], [60, 60]], [0, 0]), "got 0 rows"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
