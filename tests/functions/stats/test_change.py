import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.functions.stats import Adwin, Cusum, Moments, PageHinkley

FRESH = [
    Cusum(mean=0.2, sd=0.4, shift=0.25, threshold=5.0),
    PageHinkley(delta=0.05, threshold=5.0),
    Adwin(clock=8),
]


def losses(rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
    return (rng.random(n) < rate).astype(float)


@pytest.mark.parametrize("fresh", FRESH, ids=lambda d: type(d).__name__)
@given(cuts=st.lists(st.integers(0, 600), max_size=5))
@settings(max_examples=15)
def test_any_split_into_batches_gives_the_same_detector(fresh, cuts: list[int]):
    rng = np.random.default_rng(3)
    stream = np.concatenate([losses(rng, 0.2, 300), losses(rng, 0.6, 300)])
    parts = fresh
    for batch in np.split(stream, sorted(cuts)):
        parts = type(fresh)(**json.loads(json.dumps(asdict(parts.update(batch)))))  # and through the store
    assert parts == fresh.update(stream)
    assert parts.alarm


@pytest.mark.parametrize("fresh", FRESH, ids=lambda d: type(d).__name__)
def test_nothing_finite_nothing_counted(fresh):
    assert fresh.update([]) == fresh
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        fresh.update([0.1, float("nan")])


# 60 null streams of 10,000: at a true rate of 5 % more than 8 alarms have a chance below 0.5 %.
@pytest.mark.parametrize("kind", ["cusum", "adwin", "page-hinkley"])
def test_a_rise_of_loss_from_20_to_30_percent_is_found_and_nothing_else(kind: str):
    rng = np.random.default_rng(11)
    false, delays = 0, []
    for _ in range(60):
        reference = Moments.of(losses(rng, 0.2, 5_000))
        detector = {
            "cusum": Cusum.tuned(reference),
            "adwin": Adwin(rising_only=True),
            "page-hinkley": PageHinkley(delta=0.05, threshold=25),
        }[kind].update(losses(rng, 0.2, 10_000))
        false += detector.alarm
        after = [n for n in detector.update(losses(rng, 0.3, 3_000)).alarms if n > 10_000]
        delays.append(after[0] - 10_000 if after else math.inf)
    assert false <= 8
    assert np.median(delays) <= 600
    soon = {"cusum": 600}.get(kind, 900)
    assert np.mean(np.array(delays) <= soon) >= 0.9


def test_cusum_follows_its_recursion():
    detector = Cusum(mean=0.0, sd=1.0, shift=1.0, threshold=2.0).update([1.0, 1.0, -3.0, 2.0])
    assert detector.level == 1.5  # 0.5, 1.0, 0, 1.5
    assert detector.update([2.0]) == Cusum(0.0, 1.0, 1.0, 2.0, n=5, level=0.0, alarms=(5,))


def test_cusum_threshold_matches_the_published_run_length():
    # Montgomery, Introduction to Statistical Quality Control, table 9.3: k = 0.5, h = 5 runs 465 two-sided, so 930 one-sided.
    detector = Cusum.tuned(Moments(10**12, 0.0, 1e12), shift=1.0, false_alarm_every=930)
    assert detector.threshold == pytest.approx(5.0, abs=0.02)


def test_adwin_keeps_what_came_after_the_change():
    rng = np.random.default_rng(0)
    detector = Adwin().update(losses(rng, 0.1, 2_000)).update(losses(rng, 0.6, 2_000))
    assert detector.window.n <= 2_500
    assert detector.window.mean == pytest.approx(0.6, abs=0.05)
    assert len(detector.buckets) < 80


def test_adwin_counts_on_the_scale_of_the_stream():
    values = np.random.default_rng(0).uniform(0, 4, 500)
    assert Adwin(bound=4.0).update(values).window.mean == pytest.approx(values.mean())


def test_a_fall_is_no_rise():
    rng = np.random.default_rng(0)
    stream = np.concatenate([losses(rng, 0.6, 1_000), losses(rng, 0.1, 1_000)])
    assert Adwin().update(stream).alarm
    assert not Adwin(rising_only=True).update(stream).alarm
    assert not Cusum(mean=0.6, sd=0.5).update(stream).alarm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cusum(mean=0.0, sd=0.0), "Cusum.sd must be positive"),
        (lambda: Cusum.tuned(Moments.of([1.0] * 40)), "values that vary"),
        (lambda: PageHinkley(threshold=0.0), "threshold > 0"),
        (lambda: Adwin(delta=1.0), "0 < delta < 1"),
    ],
)
def test_a_detector_that_cannot_detect_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
