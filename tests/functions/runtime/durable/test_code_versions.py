"""Two versions of a function's code at once: an invocation that started on one does not resume on the other."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from toque.functions import Context
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.attempt import earliest_start
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import executor_of, ledger_of
from toque.functions.runtime.durable.ledger import Ledger

ROOT = Path(__file__).parents[4]
CODE = """
from toque.functions import call, function, wait_for

@function
def price() -> int:
    return {price}

@function
def total() -> list[int]:
    first = call(price)
    wait_for("more")
    return [first, call(price)]
"""


@pytest.fixture
def version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: Context
) -> Iterator[Callable[[int], ModuleType]]:
    """Import a version of the module `prices`, from a folder of its own."""

    def imported(price: int) -> ModuleType:
        folder = tmp_path / f"v{price}"
        folder.mkdir(exist_ok=True)
        (folder / "prices.py").write_text(CODE.format(price=price))
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        sys.modules.pop("prices", None)
        importlib.invalidate_caches()
        return importlib.import_module("prices")

    yield imported
    sys.modules.pop("prices", None)
    for name in ("price", "total"):
        catalog._declared.get(name, {}).pop(f"prices:{name}", None)


@pytest.fixture
def worker(used: Context, tmp_path: Path) -> Iterator[Callable[[int], "subprocess.Popen[bytes]"]]:
    """Start an executor with a version's code in a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(price: int) -> "subprocess.Popen[bytes]":
        path = f"{tmp_path / f'v{price}'}{os.pathsep}{ROOT}"
        environment = os.environ | {"TOQUE_STORE": used.store_url, "PYTHONPATH": path}
        code = "import sys; from toque.functions.runtime import catalog; from toque.functions.runtime.durable import attempt; catalog.PLATFORM = ();"
        code += "attempt.START_PATIENCE_S = 30.0;"  # a machine that is busy may start the other one later
        code += "from toque.functions.__main__ import main; sys.exit(main(['--module', 'prices', 'work']))"
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
        return processes[-1]

    yield start
    for each in processes:
        each.kill()
        each.wait()


@pytest.mark.slow
def test_each_invocation_finishes_on_the_code_it_started_with(
    used: Context,
    version: Callable[[int], ModuleType],
    worker: Callable[[int], Any],
    eventually: Callable[..., None],
) -> None:
    old = version(1)
    first, old_digest = old.total.submit(), old.total.digest
    new = version(2)
    second, new_digest = new.total.submit(), new.total.digest
    assert old_digest != new_digest
    worker(2)
    worker(1)
    eventually(lambda: first.status() == second.status() == "waiting")
    for each in (first, second):
        each.signal("more")
    eventually(lambda: first.status() == second.status() == "succeeded")
    assert (first.result(5), second.result(5)) == ([1, 1], [2, 2])
    receipts = [each.record().receipt for each in (first, second)]
    assert [each and each.digest for each in receipts] == [old_digest, new_digest]


def test_an_invocation_with_steps_of_old_code_ends_with_code_changed(
    used: Context, version: Callable[[int], ModuleType], eventually: Callable[..., None]
) -> None:
    old = version(1)
    invocation = old.total.submit()
    executor = executor_of(used)
    eventually(lambda: executor.poll() == 0 and invocation.status() == "waiting")
    new = version(2)
    invocation.signal("more")
    late = Executor(used, Ledger(used.store, actor="late"), code_patience_s=0.3)
    assert late.poll() == 1
    assert invocation.status() == "waiting"  # left to whoever has the old code
    eventually(lambda: late.poll() == 0)
    record = invocation.record()
    assert record.failure is not None
    assert (record.status, record.failure.type) == ("dead", "CodeChanged")
    assert old.total.digest in record.failure.message
    assert new.total.digest in record.failure.message
    assert ledger_of(used).dead_letters.all() == (invocation.id,)
    ledger_of(used).redrive(invocation.id)
    eventually(lambda: late.poll() == 0)
    assert invocation.result(5) == [1, 2]  # the finished step is kept, the rest is the new code's


@pytest.mark.parametrize("state", ["not begun", "waiting"])
@pytest.mark.parametrize("back", [False, True], ids=["moved", "back in time"])
def test_an_invocation_whose_function_is_gone_ends_where_a_ticker_looks_and_no_other_does(
    used: Context,
    version: Callable[[int], ModuleType],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    *,
    back: bool,
) -> None:
    monkeypatch.setattr("toque.functions.runtime.durable.executor.POSTPONE_S", 0.5)
    old = version(1)
    invocation, beside = old.total.submit(), old.price.submit()
    eventually(lambda: executor_of(used).poll() >= 0 and beside.status() == "succeeded")
    if state == "waiting":
        eventually(lambda: executor_of(used).poll() == 0 and invocation.status() == "waiting")
        invocation.signal("more")
    else:
        invocation = old.total.submit()
    declared = catalog._declared.pop("total")
    script, ticker = (
        Executor(used, Ledger(used.store, actor=name), code_patience_s=0.3) for name in ("script", "ticker")
    )
    since = time.monotonic()
    while time.monotonic() < since + 1:  # longer than its patience
        assert script.poll() >= 1  # a process that has a part of the project
    if back:
        ticker.poll(ends_unknown=True)
        catalog._declared["total"] = declared
        eventually(
            lambda: ticker.poll(ends_unknown=True) >= 0 and invocation.status() in {"waiting", "succeeded"}
        )
        assert ledger_of(used).dead_letters.all() == ()
    else:
        assert ticker.poll(ends_unknown=True) >= 1
        assert invocation.status() != "dead"  # left to whoever has it
        eventually(lambda: ticker.poll(ends_unknown=True) >= 0 and invocation.status() == "dead")
        failure = invocation.record().failure
        assert failure is not None
        assert (failure.type, "prices:total is not declared" in failure.message) == ("UnknownFunction", True)
        assert invocation.id in ledger_of(used).dead_letters.all()
        catalog._declared["total"] = declared
        ledger_of(used).redrive(invocation.id)
        eventually(
            lambda: ticker.poll(ends_unknown=True) >= 0 and invocation.status() in {"waiting", "succeeded"}
        )


def test_code_replaced_on_disk_does_not_resume_an_invocation(
    used: Context, version: Callable[[int], ModuleType], eventually: Callable[..., None]
) -> None:
    old = version(1)
    invocation = old.total.submit()
    executor = Executor(used, Ledger(used.store, actor="ada"), code_patience_s=0.3)
    eventually(lambda: executor.poll() == 0 and invocation.status() == "waiting")
    # This process still has the old code; workers import the new.
    Path(str(old.__file__)).write_text(CODE.format(price=22))
    invocation.signal("more")
    eventually(lambda: executor.poll() == 0)
    executor.close()
    failure = invocation.record().failure
    assert failure is not None
    assert failure.type == "CodeChanged"


def test_other_code_waits_shortly_before_it_starts_and_longer_before_it_ends_an_invocation(
    used: Context, version: Callable[[int], ModuleType]
) -> None:
    old = version(1)
    invocation = old.total.submit()
    record = invocation.record()
    assert earliest_start(record, old.total.digest, patience_s=60) <= record.due
    assert earliest_start(record, "other", patience_s=60) == record.due + timedelta(seconds=2)
    invocation.cancel()
    followed = ledger_of(used).follow(invocation.id)
    ledger_of(used).redrive(invocation.id)
    for body in (
        {"kind": "started", "worker": "w", "lease_s": 0.0, "digest": old.total.digest},
        {"kind": "step", "function": "price", "arguments": "", "result": {"json": 1}},
    ):
        followed.append(lambda _, body=body: body)
    record = followed.record
    assert earliest_start(record, "other", patience_s=60) == record.due + timedelta(seconds=60)
    assert earliest_start(record, old.total.digest, patience_s=60) <= record.due
