"""How the benchmark of the counter judges its windows, and what its project declares."""

import pytest

from toque.functions.project import load_project
from toque.functions.runtime.declaration import NICENESS
from toque.load.benchmarks.harness import NotPossible
from toque.load.benchmarks.platform.counter import Trainings, verdict
from toque.load.benchmarks.platform.windows import MODEL, PROJECT, Window
from toque.load.scenarios.windows import Measured, bin_of, counts_of


def window(p99: float, *, failed: int = 0) -> Window:
    """A hundred requests, all of 1 ms but for the slowest two."""
    counts = counts_of([(bin_of(1e-3), 98), (bin_of(p99 / 1e3), 2)])
    return Window(Measured(100 + failed, 100, failed, 0, 2.0, 0.0, counts), 0.2, 1.6)


def trainings(*niceness: int, waiting: int = 22) -> Trainings:
    return Trainings(None, None, 24, 2, set(niceness), [waiting])  # type: ignore[arg-type]


def test_twice_the_p99_alone_is_allowed(capsys) -> None:
    verdict([window(5.0), window(5.0)], [window(9.0)] * 2, trainings(NICENESS))
    printed = capsys.readouterr().out
    assert "1.79" in printed
    assert "BROKEN" not in printed


@pytest.mark.parametrize(
    ("p99", "niceness"), [(11.0, (NICENESS,)), (5.0, (NICENESS, NICENESS - 1)), (5.0, ())]
)
def test_more_is_missed_and_so_is_a_training_that_did_not_step_back(capsys, p99, niceness) -> None:
    verdict([window(5.0)], [window(p99)], trainings(*niceness))
    assert "BROKEN" in capsys.readouterr().out


def test_windows_in_which_nobody_waited_or_a_request_failed_are_none() -> None:
    with pytest.raises(NotPossible, match="raise --experiments"):
        verdict([window(5.0)], [window(5.0)], trainings(NICENESS, waiting=0))
    with pytest.raises(NotPossible, match="3 requests failed"):
        verdict([window(5.0)], [window(5.0, failed=3)], trainings(NICENESS))


def test_its_project_declares_the_model_that_is_served() -> None:
    definition = load_project(PROJECT).model(MODEL)
    assert definition.monitors == ()
    assert definition.retraining is None
