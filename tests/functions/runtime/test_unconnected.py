"""A process whose environment names a cluster that it is not connected to says so, once."""

import logging

import pytest

from toque.functions import function
from toque.functions.runtime.run import cluster


@function
def doubled(number: int) -> int:
    """Double a number."""
    return 2 * number


@pytest.mark.parametrize(("address", "said"), [("10.0.0.4:6379", 1), ("", 0)])
def test_remote_runs_that_stay_here_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str, said: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "running", lambda: False)
    cluster.say_if_unconnected.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert doubled.map([1, 2]) == [2, 4]
    cluster.say_if_unconnected.cache_clear()
    assert sum("is not connected" in line for line in caplog.messages) == said
