"""Low priority of a process counts against other sessions too, where Linux shares CPUs among sessions first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from toque.functions.runtime.declaration import NICENESS
from toque.functions.runtime.process import autogroups_enabled

PROGRAM = """
import json, os, sys
from pathlib import Path
from toque.functions.runtime import process as niceness

folder = Path(sys.argv[1])

def be_refused():
    niceness.ENABLED, niceness.AUTOGROUP = folder / "enabled", folder / "autogroup"

starts = {"member": lambda: None, "leader of a group": lambda: os.setpgid(0, 0), "leader of a session": os.setsid, "refused": be_refused}
for name, start in starts.items():
    child = os.fork()
    if child == 0:
        start()
        niceness.lower_priority()
        of_session = niceness.AUTOGROUP.read_text().split()[-1:] if niceness.AUTOGROUP.is_file() else []
        lowered = [os.getpriority(os.PRIO_PROCESS, 0), os.getsid(0) == os.getpid(), of_session]
        print(json.dumps([name, lowered]), flush=True)
        os._exit(0)  # at once: so low a priority ends late on a busy machine
    assert os.waitpid(child, 0)[1] == 0
"""


@dataclass(frozen=True)
class Lowered:
    """Processes that lowered their priority, by how they were started: their niceness, whether each leads a session, and
    the session's niceness.
    """

    by_start: dict[str, tuple[int, bool, list[str]]]
    stderr: str


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "enabled").write_text("1")
    (folder / "autogroup").mkdir()  # which takes no word: as where a kernel refuses it
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    return Lowered(
        {name: (niceness, leads, of_session) for name, (niceness, leads, of_session) in told}, ran.stderr
    )


@pytest.fixture
def wanted() -> int:
    return min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19)


@pytest.mark.skipif(not autogroups_enabled(), reason="CPUs are not shared among sessions here")
@pytest.mark.parametrize("start", ["member", "leader of a group"])
def test_a_process_of_low_priority_gets_a_session_of_that_niceness(
    lowered: Lowered, wanted: int, start: str
) -> None:
    assert lowered.by_start[start] == (wanted, True, [str(wanted)])


def test_the_niceness_of_a_shared_session_stays(lowered: Lowered, wanted: int) -> None:
    niceness, _, session_niceness = lowered.by_start["leader of a session"]
    assert niceness == wanted
    assert session_niceness in ([], ["0"])


def test_a_kernel_that_refuses_the_session_s_niceness_is_logged(lowered: Lowered) -> None:
    assert "refused" in lowered.by_start
    assert lowered.stderr.count("does not count against other sessions") == 1
