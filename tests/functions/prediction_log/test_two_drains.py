"""Two drains at once, one of which is cut off at each of its steps and goes on when the other is done."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.functions.prediction_log.logbook import all_rows, record, write
from tests.waiting import until
from toque.functions.prediction_log import drain
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry.store import ObjectStore

MODULE = sys.modules[drain.__module__]  # its name in the package is the function's


class Gate:
    """Holds the first thread that passes, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def hold(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.open.wait(60)


def held_before(gate: Gate, step: Callable[..., Any]) -> Callable[..., Any]:
    def held(*args: Any, **kwargs: Any) -> Any:
        gate.hold()
        return step(*args, **kwargs)

    return held


@pytest.mark.parametrize("step", ["_fresh", "write_deltalake", "mark_drained"])
def test_a_drain_that_was_cut_off_and_comes_back_doubles_and_loses_nothing(
    step: str, store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    url, gate = redis_server.url, Gate()
    write(wal_root, url, [record("known")])
    drain(store, url)  # the table is there, as it is on all but the first day
    writer = write(wal_root, url, [record(f"a{i}") for i in range(5)])
    place = Stream if step == "mark_drained" else MODULE
    with monkeypatch.context() as patch:
        patch.setattr(place, step, held_before(gate, getattr(place, step)))
        stalled = threading.Thread(target=drain, args=(store, url))
        stalled.start()
        assert gate.reached.wait(60)
        write(wal_root, url, [record(f"b{i}") for i in range(5)])
        drain(store, url, wal_root=wal_root)  # moves all, drops it from the stream, removes the dead writer
        drain(store, url, wal_root=wal_root)
        stream = Stream(redis.Redis.from_url(url), "predictions")
        until(lambda: stream.states() == [])
        gate.open.set()
        stalled.join(60)
    assert not stalled.is_alive()
    drain(store, url)
    expected = ["known", *(f"{name}{i}" for name in "ab" for i in range(5))]
    assert Counter(all_rows(store)["prediction_id"].to_pylist()) == Counter(expected)
    assert stream.state(writer)[2:5] == (0, 0, 0)  # the late mark made no key of a removed writer anew
