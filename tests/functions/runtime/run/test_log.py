"""Logs of durable invocations, stored while they run in every kind of process."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toque.functions import Context, Invocation, Retries, call, function, report_progress
from toque.functions.runtime.durable.invocation import run_pending
from toque.functions.runtime.errors import InvocationFailed, UnknownInvocation
from toque.functions.runtime.run import log
from toque.functions.runtime.run.log import Line, Recorder, Tail, read_log
from toque.registry import Unavailable
from toque.registry.store.object_store import ObjectStore


@function
def print_words(words: list[str]) -> int:
    for word in words:
        print(word)  # noqa: T201
    sys.stderr.write("half a ")
    sys.stderr.write("line")
    logging.getLogger("sample").info("told %s", len(words))
    return len(words)


@function(retries=Retries(2, backoff_s=0.01))
def break_loudly() -> int:
    raise RuntimeError("out of gas")


@function
def printing_step(word: str) -> str:
    print(f"step {word}")  # noqa: T201
    return word


@function(timeout_s=30)
def printing_step_in_a_process(word: str) -> str:
    print(f"apart {word}")  # noqa: T201
    return word


@function
def print_in_steps() -> str:
    print("before")  # noqa: T201
    return call(printing_step, "one") + call(printing_step_in_a_process, "two")


@function
def print_then_wait(path: str) -> None:
    print("begun")  # noqa: T201
    report_progress(1, 4, "reading")
    Path(path).write_text("begun")
    while Path(path).exists():
        time.sleep(0.01)
    report_progress(4, 4, "done")


@function(retries=Retries(max_lost=0))
def print_then_die(path: str) -> None:
    print("last words")  # noqa: T201
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@function
def print_in_a_fork() -> int:
    print("parent")  # noqa: T201
    pid = os.fork()
    if pid == 0:
        print("child")  # noqa: T201
        time.sleep(2 * log.FLUSH_S)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@function
def print_nothing() -> int:
    return 1


def lines(invocation: Invocation[Any]) -> list[Line]:
    return [line for segment in invocation.log() for line in segment.lines]


def texts(invocation: Invocation[Any]) -> list[str]:
    return [line.text for line in lines(invocation)]


@pytest.mark.usefixtures("used", "backend")
def test_output_and_log_records_are_stored_by_invocation() -> None:
    invocation = print_words.submit(["one", "two"])
    assert invocation.result(60) == 2
    found = [(each.source, each.text) for each in lines(invocation)]
    assert found == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("log", "INFO sample: told 2"),
        ("stderr", "half a line"),
    ]
    assert {each.function for each in lines(invocation)} == {"print_words"}


@pytest.mark.usefixtures("used", "backend")
def test_the_traceback_of_every_attempt_is_in_the_log() -> None:
    invocation = break_loudly.submit()
    with pytest.raises(InvocationFailed):
        invocation.result(60)
    assert texts(invocation).count("RuntimeError: out of gas") == 2


@pytest.mark.usefixtures("used", "backend")
def test_output_of_a_step_in_another_process_is_in_the_workflow_s_log() -> None:
    invocation = print_in_steps.submit()
    assert invocation.result(60) == "onetwo"
    assert sorted(texts(invocation)) == ["apart two", "before", "step one"]
    assert {each.function for each in lines(invocation)} >= {"print_in_steps", "printing_step_in_a_process"}


def test_output_of_a_forked_process_is_recorded_once(used: Context) -> None:
    invocation = print_in_a_fork.submit()
    assert invocation.result(60) == 0
    assert sorted(texts(invocation)) == ["child", "parent"]


@pytest.mark.usefixtures("backend")
def test_lines_and_progress_can_be_read_while_it_runs(
    used: Context, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    held = tmp_path / "held"
    invocation = print_then_wait.submit(str(held))
    run_pending(used)
    eventually(lambda: texts(invocation) == ["begun"])
    eventually(invocation.progress)
    progress = invocation.progress()
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (1, 4, "reading")
    eventually(held.exists)
    held.unlink()
    invocation.result(60)
    progress = invocation.progress()
    assert progress is not None
    assert progress.done == 4


@pytest.mark.usefixtures("backend")
def test_output_before_a_worker_is_killed_is_kept(
    used: Context, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    file = tmp_path / "pid"
    invocation = print_then_die.submit(str(file))
    run_pending(used)
    eventually(lambda: file.exists() and file.read_text())
    eventually(lambda: texts(invocation) == ["last words"])
    os.kill(int(file.read_text()), signal.SIGKILL)
    with pytest.raises(InvocationFailed, match="WorkerLost"):
        invocation.result(60)
    assert texts(invocation) == ["last words"]


@pytest.mark.usefixtures("backend")
def test_a_run_without_output_writes_nothing(used: Context) -> None:
    invocation = print_nothing.submit()
    invocation.result(60)
    assert list(used.store.list(f"invocations/{invocation.id}/logs/")) == []


def test_an_unknown_invocation_has_no_log(used: Context) -> None:
    with pytest.raises(UnknownInvocation):
        list(Invocation[Any]("nothing", used).log())


def test_progress_outside_a_durable_run_is_validated_and_dropped(used: Context) -> None:
    report_progress(0.5)
    with pytest.raises(ValueError, match="done=3 must be between 0 and total=2"):
        report_progress(3, 2)


class UnavailableStore:
    """Store that can be unavailable."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.away = True

    def put(self, key: str, data: bytes) -> None:
        if self.away:
            raise Unavailable("503 Slow Down")
        self.store.put(key, data)


def test_segments_are_bounded_and_in_order(used: Context) -> None:
    recorder = Recorder(used.store, "i", "f")
    for number in range(3000):
        recorder.line("stdout", f"{number} {'x' * 50}")
    recorder.line("stdout", "y" * 20_000)
    recorder.close()
    segments = list(read_log(used.store, "i"))
    said = [line.text for each in segments for line in each.lines]
    assert [int(each.split()[0]) for each in said[:-1]] == list(range(3000))
    assert said[-1].endswith("(11808 more characters)")
    sizes = [len(used.store.get(f"invocations/i/logs/{each.name}.jsonl")) for each in segments]
    assert len(sizes) > 2
    assert max(sizes) <= log.SEGMENT_BYTES + 100 * len(segments)


def test_lines_are_kept_through_a_store_outage_and_dropped_lines_counted(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PENDING_BYTES", 1000)
    away: Any = UnavailableStore(used.store)
    recorder = Recorder(away, "i", "f")
    for number in range(20):
        recorder.line("stdout", str(number))
    away.away = False
    recorder.close()
    said = [line.text for each in read_log(used.store, "i") for line in each.lines]
    kept = len(said) - 1
    assert said[:-1] == [str(number) for number in range(kept)]
    assert said[-1] == f"… {20 - kept} lines were left out: more than is kept of one process"


def test_a_tail_yields_each_line_once_even_from_an_earlier_segment(used: Context) -> None:
    def put(name: str, text: str) -> None:
        line = f'{{"at":"2024-01-01T00:00:00Z","function":"f","source":"stdout","text":"{text}"}}'
        used.store.put(f"invocations/i/logs/{name}.jsonl", line.encode())

    tail = Tail(lambda after: list(read_log(used.store, "i", after=after)))
    put("0000000100000-aaaaaaaa-000000", "one")
    assert [each.text for each in tail.new_lines()] == ["one"]
    put("0000000099000-bbbbbbbb-000000", "late")
    put("0000000100500-aaaaaaaa-000001", "two")
    assert [each.text for each in tail.new_lines()] == ["late", "two"]
    assert list(tail.new_lines()) == []
