"""Runs of functions are counted and timed, wherever they run."""

import pytest
from prometheus_client import REGISTRY

from toque.functions import function
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import Function


@function(retries=Retries(max_attempts=3, backoff_s=0.001))
def metered(fail: int) -> int:
    """Fail if it is asked to."""
    if fail:
        raise ValueError("as asked")
    return 1


def counted(outcome: str) -> float:
    labels = {"workspace": "default", "function": metered.name, "outcome": outcome}
    return REGISTRY.get_sample_value("toque_function_runs_total", labels) or 0.0


def test_runs_are_counted_by_outcome_and_each_attempt_is_one() -> None:
    assert isinstance(metered, Function)
    before = counted("succeeded"), counted("failed")
    assert metered.remote(fail=0).result() == 1
    with pytest.raises(ValueError, match="as asked"):
        metered.remote(fail=1).result()
    assert counted("succeeded") - before[0] == 1
    assert counted("failed") - before[1] == 3
    labels = {"workspace": "default", "function": metered.name}
    assert REGISTRY.get_sample_value("toque_function_run_seconds_count", labels) == sum(
        counted(outcome) for outcome in ("succeeded", "failed")
    )
