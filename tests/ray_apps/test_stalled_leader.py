"""A leader that is stopped in the middle of its work and resumes when another leads: nothing happens twice."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import ObjectStore, open_store
from toque.registry.journal import Journal

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0

Members = dict[str, subprocess.Popen[str]]


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    environment = os.environ | {
        "TOQUE_STORE": f"file://{tmp_path}/store",
        "TOQUE_TEST_EFFECTS": f"{tmp_path}/effects",
        "PYTHONPATH": str(ROOT),
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.ray_apps.stalled_leader", name],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )
        for name in ("one", "other")
    }  # fmt: skip
    yield started
    for each in started.values():
        each.kill()
        each.wait()


def leads_next(members: Members) -> str:
    """Wait until one of the members says that it leads; returns its name."""
    outputs = [each.stdout for each in members.values() if each.stdout is not None]
    ready, _, _ = select.select(outputs, [], [], DEADLINE_S)
    assert ready, "nobody leads"
    return str(ready[0].readline().strip())


def entries_of(store: ObjectStore) -> list[str]:
    entries = Journal(store, "schedules/each-second", actor="t").entries()
    return [entry.body["tick"] for entry in entries if entry.body["kind"] != "submitted"]


def wait_for_ticks(store: ObjectStore, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(entries_of(store)) < count:
        assert time.monotonic() < deadline, f"{len(entries_of(store))} ticks"
        time.sleep(0.05)


def test_a_leader_that_stalls_and_resumes_does_nothing_twice(members: Members, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    first = leads_next(members)
    for stall in range(2):  # each at another point of the round
        wait_for_ticks(store, len(entries_of(store)) + 1)
        time.sleep(0.013 * stall)
        members[first].send_signal(signal.SIGSTOP)
        second = leads_next({name: each for name, each in members.items() if name != first})
        wait_for_ticks(store, len(entries_of(store)) + 1)
        members[first].send_signal(signal.SIGCONT)
        first = second
    wait_for_ticks(store, len(entries_of(store)) + 1)
    for each in members.values():
        each.kill()
    ticks = entries_of(store)
    assert len(set(ticks)) == len(ticks)
    fired = [
        entry.body
        for entry in Journal(store, "schedules/each-second", actor="t").entries()
        if entry.body["kind"] == "fired"
    ]
    ledger = Ledger(store, actor="t")
    records = [ledger.read(each["invocation"]) for each in fired[:-2]]
    assert {each.status for each in records} == {"succeeded"}
    assert all(each.lost == 0 for each in records)
    effects = (tmp_path / "effects").read_text().split()
    assert len(set(effects)) == len(effects)
    Journal(store, "schedules/each-second", actor="t").verify()
