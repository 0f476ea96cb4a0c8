"""How the benchmark of two workers judges what it found."""

from toque.load.benchmarks.training.speed import judged


def found(bare: float, ours: float) -> tuple[bool, str]:
    """Judged when the second worker makes the loops so many times as fast."""
    rates = {
        "bare 1": [100.0, 50.0, 90.0],
        "bare 2": [100 * bare, 50 * bare, 900.0],
        "ours 1": [80.0, 40.0, 90.0],
        "ours 2": [80 * ours, 40 * ours, 1.0],
    }
    return judged(rates, {name: [1.0, 2.0, 9.0] for name in rates})


def test_ours_has_to_gain_what_the_bound_says() -> None:
    passed, told = found(bare=1.9, ours=1.75)
    assert passed
    assert "1.75 x (rounds 0.01 to 1.75); CPU 2.00 and 2.00 s a pass" in told
    assert told.endswith("at least 1.7 x: met")


def test_it_is_missed_where_the_bare_loop_gains_it() -> None:
    passed, told = found(bare=1.8, ours=1.6)
    assert not passed
    assert told.endswith("missed")


def test_nothing_is_asked_where_the_bare_loop_does_not_gain_it() -> None:
    passed, told = found(bare=1.2, ours=1.1)
    assert passed
    assert told.endswith("the bare loop does not either")
