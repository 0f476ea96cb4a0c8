"""A durable run that no node could ever hold is given up in words, once nodes had time to join."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toque.functions import Context, Resources, function, use_context
from toque.functions.runtime.durable import workers
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.run.forkserver import ThreadRun
from toque.registry import open_store


@function(resources=Resources(num_cpus=64))
def huge() -> int:
    return 1


class Nodes:
    """Nodes of a cluster that this process is said to be connected to; time passes as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.enough, self.now = False, 0.0
        monkeypatch.setattr(workers.cluster, "running", lambda: True)
        monkeypatch.setattr(workers, "refuse_impossible", self.refuse)
        monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(workers, "_start_task", self.start)

    def refuse(self, declared: Any) -> None:
        if not self.enough:
            raise NoRoom(f"{declared.name} needs 64 CPU")

    def start(self, attempt: Any, _: Any) -> Any:
        return ThreadRun(attempt.function.name, lambda: workers.run_in_worker(attempt))


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}"
    with use_context(Context(open_store(url), url)) as made:
        yield made


@pytest.mark.parametrize("joins", [True, False])
def test_a_run_waits_for_nodes_and_is_given_up_once_none_came(
    used: Context, monkeypatch: pytest.MonkeyPatch, *, joins: bool
) -> None:
    nodes, run = Nodes(monkeypatch), huge.submit()
    executor = Executor(used, ledger_of(used))
    try:
        for _ in range(3):
            executor._open.pop(run.id, None)
            executor.drive(run.id, wait_s=0)
            assert run.record().status == "queued"
            nodes.now += workers.NODES_PATIENCE_S / 3 - 1
        nodes.enough, nodes.now = joins, nodes.now + workers.NODES_PATIENCE_S
        executor._open.pop(run.id, None)
        while not run.record().ended:
            executor.drive(run.id, wait_s=0.05)
    finally:
        executor.close()
    record = run.record()
    assert record.status == ("succeeded" if joins else "dead")
    if not joins:
        assert record.failure is not None
        assert (record.failure.type, record.failure.message) == ("NoRoom", "huge needs 64 CPU")
