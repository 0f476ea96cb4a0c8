"""An invocation's workers as two threads see them; on workers that fall silent: test_silent_nodes.py."""

from __future__ import annotations

from typing import Any

from toque.functions.runtime.durable.workers import Dispatch


def test_who_waits_for_a_worker_that_another_thread_has_taken_goes_on() -> None:
    function: Any = None  # what runs does not matter here
    assert Dispatch(function, 1).wait(60.0)
