"""A platform's processes are found and ended, whatever was killed meanwhile; all others are left alone."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.waiting import until
from toque.ray_apps.local import processes
from toque.ray_apps.local.processes import Process, ProcessSession

Begin = Callable[..., ProcessSession]


def alive(pid: int) -> bool:
    return Process.find(pid) is not None


def test_a_session_is_found_with_its_children(home: Path, begin: Begin) -> None:
    session = begin("sleep 60 & sleep 60")
    until(lambda: len(processes.of_platform(home, [session])) == 3)


def test_the_children_of_a_killed_leader_are_still_found_and_ended(home: Path, begin: Begin) -> None:
    session = begin("sleep 60 & sleep 60")
    until(lambda: len(processes.of_platform(home, [session])) == 3)
    os.kill(session.leader, signal.SIGKILL)
    until(lambda: len(processes.of_platform(home, [session])) == 2)
    assert processes.end(home, [session], grace_s=2) == []
    assert processes.of_platform(home, [session]) == []


def test_processes_without_a_recorded_session_are_found_by_their_mark(home: Path, begin: Begin) -> None:
    begin("exec sleep 60")
    until(lambda: len(processes.of_platform(home, [])) >= 1)
    assert processes.end(home, [], grace_s=2) == []
    assert processes.of_platform(home, []) == []


def test_a_process_in_a_session_of_its_own_is_found_by_its_mark(home: Path, begin: Begin) -> None:
    session = begin("setsid sleep 61 & wait")
    until(lambda: any("sleep 61" in each.command for each in processes.of_platform(home, [session])))
    assert processes.end(home, [session], grace_s=2) == []
    assert processes.of_platform(home, [session]) == []


def test_a_process_that_ignores_sigterm_is_killed(home: Path, begin: Begin) -> None:
    session = begin("trap '' TERM; while :; do sleep 0.05; done")
    until(lambda: len(processes.of_platform(home, [session])) >= 1)
    assert processes.end(home, [session], grace_s=0.2) == []


def test_the_platform_of_another_folder_is_left_alone(home: Path, begin: Begin, tmp_path: Path) -> None:
    session = begin("exec sleep 60")
    until(lambda: len(processes.of_platform(home, [session])) == 1)
    assert processes.of_platform(tmp_path / "other", []) == []
    assert processes.end(tmp_path / "other", [], grace_s=0) == []
    assert alive(session.leader)


def test_a_process_that_got_a_recorded_pid_later_is_left_alone(home: Path, begin: Begin) -> None:
    stranger = begin("exec sleep 60", mark=False)
    before = ProcessSession(
        stranger.leader, stranger.started - 1
    )  # recorded of an earlier process with this pid
    assert processes.of_platform(home, [before]) == []
    assert processes.end(home, [before], grace_s=0) == []
    assert alive(stranger.leader)
    os.kill(stranger.leader, signal.SIGKILL)


def test_kept_sessions_are_not_ended(home: Path, begin: Begin) -> None:
    kept, other = begin("exec sleep 60"), begin("exec sleep 60")
    until(lambda: len(processes.of_platform(home, [kept, other])) == 2)
    assert processes.end(home, [kept, other], grace_s=2, keep={kept.leader}) == []
    assert [each.pid for each in processes.of_platform(home, [kept, other])] == [kept.leader]


def test_the_callers_own_session_is_never_ended(home: Path) -> None:
    here = ProcessSession(os.getsid(0), 0)
    child = subprocess.Popen(["sleep", "60"], env=processes.with_mark({"PATH": "/usr/bin:/bin"}, home))
    try:
        until(lambda: Process.find(child.pid) is not None)
        assert processes.of_platform(home, [here]) == []
    finally:
        child.kill()
        child.wait()
