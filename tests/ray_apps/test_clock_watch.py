"""The measured difference of clocks: the store's against a machine's that runs ahead or behind, or a slow store's."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from toque.ray_apps.exporter import measure_clock
from toque.registry import open_store


@pytest.mark.parametrize("ahead_s", [-40.0, 40.0])
def test_a_clock_that_is_off_is_measured(tmp_path: Path, ahead_s: float) -> None:
    store = open_store(f"file://{tmp_path}")
    assert measure_clock(store, clock=lambda: time.time() + ahead_s) == pytest.approx(ahead_s, abs=2.5)


def test_a_slow_answer_is_no_skew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"file://{tmp_path}")
    monkeypatch.setattr(type(store), "now", lambda _: (datetime.now(UTC), time.sleep(0.5))[0])
    assert measure_clock(store) == 0.0
