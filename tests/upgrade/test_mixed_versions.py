"""The release before and this one work on one store and one Redis at the same time, then the older one ends.

The release before is the commit in `version_before.txt`, taken from the repository's history.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import running_redis
from toque.functions import Context, Invocation, use_context
from toque.functions.prediction_log import drain, outcomes
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.record import Record
from toque.ray_apps.cli.platform_folds import platform_fold
from toque.registry import Registry, open_store, utc_now
from toque.registry.history import audit

pytestmark = [pytest.mark.long, pytest.mark.slow]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEFORE = (HERE / "version_before.txt").read_text().strip()
ENOUGH = 5  # answers of each release while both work
DEADLINE_S = 240.0
PROJECT = """
from toque.functions import OnEvent, call, function
from upgrade_changed import CHANGED

@function
def add(number: int) -> int:
    return number + 1

@function
def two_steps(number: int) -> int:
    return call(add, call(add, number))

@function(on=OnEvent("orders", from_start=True))
def take_order(order: str) -> str:
    return order
"""
CHANGED = """
from toque.functions import call, function

@function
def one_more(number: int) -> int:
    return number + 1

@function
def changed(number: int) -> list[int]:
    return [call(one_more, number), call(one_more, number), {release}]

CHANGED = changed
"""


def as_before(text: str) -> str:
    """Write imports as the release before had them: each folder was a package of its own."""
    return text.replace("from toque import ", "import ").replace("from toque.", "from ")


@pytest.fixture(scope="module")
def code_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before, unpacked from the repository's history."""
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(
            f"the history here does not reach {BEFORE[:12]} (a shallow clone?): {archive.stderr.decode().strip()}"
        )
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A platform's folder: a store with a model, and the project as each release has it."""
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    registry.create_model("late")
    (tmp_path / "weights").write_bytes(b"weights")
    for _ in range(2):
        registry.create_version("late", tmp_path / "weights")
    registry.set_alias("late", "champion", 1)
    for release, name in enumerate(("before", "now")):
        place = tmp_path / f"project-{name}"
        place.mkdir()
        text = as_before if name == "before" else str
        (place / "upgrade_project.py").write_text(text(PROJECT))
        (place / "upgrade_changed.py").write_text(text(CHANGED.format(release=release)))
        (place / "member.py").write_text(text((HERE / "member.py").read_text()))
    return tmp_path


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with running_redis(tmp_path / "redis") as server:
        yield server.url


def start(name: str, code: Path, folder: Path, redis_url: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": f"{code}{os.pathsep}{folder}/project-{name}",
        "TOQUE_PROJECT": "upgrade_project",
    }
    command = [sys.executable, str(folder / f"project-{name}" / "member.py"), name, str(folder), redis_url]
    log = (folder / f"log-{name}").open("wb")
    return subprocess.Popen(
        command, cwd=code, env=environment, stderr=log, stdout=log, start_new_session=True
    )


def acknowledged(folder: Path, name: str, kind: str) -> list[str]:
    path = folder / f"acknowledged-{name}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        what for each in lines if each.endswith("]") for found, what in [json.loads(each)] if found == kind
    ]


def until(condition: Callable[[], bool], members: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        logs = {path.name: path.read_text()[-3000:] for path in folder.glob("log-*")}
        assert all(member.poll() is None for member in members), logs
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_nothing_is_lost_while_two_releases_work_on_one_store(
    code_before: Path, folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(folder / "project-now"))
    url = f"file://{folder}/store"
    used = Context(open_store(url), url, redis_url, project="upgrade_project", actor="check")
    before = start("before", code_before, folder, redis_url)
    now = start("now", ROOT, folder, redis_url)
    try:
        until(lambda: answered(folder, before=ENOUGH, now=ENOUGH), [before, now], folder)
        for name, code in (("before", code_before), ("now", ROOT)):
            assert acknowledged(folder, name, "code") == [str(code / "functions" / "__init__.py")]
        Registry(used.store, actor="ada").set_alias("late", "champion", 2)
        counts = {name: len(acknowledged(folder, name, "prediction")) + 2 for name in ("before", "now")}
        until(lambda: answered(folder, **counts), [before, now], folder)
        os.killpg(before.pid, signal.SIGKILL)  # with its workers
        before.wait()
        with use_context(used):
            finish_invocations(used, folder, now)
        (folder / "stop-now").touch()
        assert now.wait(DEADLINE_S) == 0, (folder / "log-now").read_text()[-3000:]
    finally:
        for member in (before, now):
            if member.poll() is None:
                os.killpg(member.pid, signal.SIGKILL)
                member.wait()
    drain(used.store, redis_url, wal_root=folder / "wal")
    at = utc_now()
    rows = outcomes(used.store, "late", at - timedelta(days=1), at, labelled_only=False).to_pylist()
    assert sorted(row["prediction_id"] for row in rows) == sorted(of_both(folder, "prediction"))
    assert {row["label"] for row in rows} == {1.0}
    assert {row["version"] for row in rows} == {1, 2}
    tags = Registry(used.store, actor="check").get_version("late", 1).tags
    assert {"seen-by-before", "seen-by-now"} <= set(tags)
    assert audit(used.store, fold_of=platform_fold).findings == ()


def answered(folder: Path, **least: int) -> bool:
    return all(len(acknowledged(folder, name, "prediction")) >= count for name, count in least.items())


def of_both(folder: Path, kind: str) -> list[str]:
    return [what for name in ("before", "now") for what in acknowledged(folder, name, kind)]


def finish_invocations(used: Context, folder: Path, now: subprocess.Popen[bytes]) -> None:
    """Wait until this release has ended all; what other code had begun with steps ends with the reason, and is redriven."""

    def work() -> list[Invocation[Any]]:
        return [Invocation.of(each) for kind in ("add", "steps", "changed") for each in of_both(folder, kind)]

    def all_ended() -> bool:
        return len(orders(used)) >= len(of_both(folder, "event")) and all(
            each.ended for each in (*orders(used), *(each.record() for each in work()))
        )

    until(all_ended, [now], folder)
    for each in work():
        record = each.record()
        if record.status != "succeeded":
            assert record.failure is not None
            assert (record.failure.type, record.attempts) == ("CodeChanged", 0), record
            ledger_of(used).redrive(each.id)
    until(all_ended, [now], folder)
    for each in work():
        number = ledger_of(used).arguments(each.record())["number"]
        expected = {"add": number + 1, "two_steps": number + 2}
        name, result = each.record().reference.rpartition(":")[2], each.result(timeout_s=1)
        assert result == expected[name] if name in expected else result[:2] == [number + 1] * 2
    taken = [Invocation.of(each.id).result(timeout_s=1) for each in orders(used)]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(of_both(folder, "event"))


def orders(used: Context) -> list[Record]:
    found = ledger_of(used).invocations(limit=10_000)
    return [each for each in found if each.reference.endswith("take_order")]
