"""Low priority of a process counts against other sessions too, where Linux shares CPUs among sessions first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from functions.runtime.declaration import NICENESS
from functions.runtime.run.niceness import autogroups_enabled

IMPORTS = """
import json, os
from pathlib import Path
from functions.runtime.run import niceness
"""
LOWER_PRIORITY = """
niceness.lower_priority()
session_niceness = niceness.AUTOGROUP.read_text() if niceness.AUTOGROUP.is_file() else ""
print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), os.getsid(0) == os.getpid(), session_niceness.split()[-1:]]))
"""


def lowered_priority(**started: Any) -> tuple[int, bool, list[str]]:
    """Run a process that lowers its priority; its niceness, whether it leads a session, and the session's niceness."""
    child = subprocess.run(
        [sys.executable, "-c", IMPORTS + LOWER_PRIORITY],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
        **started,
    )
    niceness, leads, session_niceness = json.loads(child.stdout)
    return niceness, leads, session_niceness


@pytest.mark.skipif(not autogroups_enabled(), reason="CPUs are not shared among sessions here")
@pytest.mark.parametrize("group", [None, 0], ids=["member of a group", "leader of one"])
def test_a_process_of_low_priority_gets_a_session_of_that_niceness(group: int | None) -> None:
    wanted = min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19)
    assert lowered_priority(process_group=group) == (wanted, True, [str(wanted)])


def test_the_niceness_of_a_shared_session_stays() -> None:
    niceness, _, session_niceness = lowered_priority(start_new_session=True)
    assert niceness == min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19)
    assert session_niceness in ([], ["0"])


def test_a_kernel_that_refuses_the_session_s_niceness_is_logged(tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("1")
    (tmp_path / "autogroup").mkdir()  # which takes no word: as where a kernel refuses it
    patched_paths = f"niceness.ENABLED, niceness.AUTOGROUP = Path({str(tmp_path / 'enabled')!r}), Path({str(tmp_path / 'autogroup')!r})"
    child = subprocess.run(
        [sys.executable, "-c", f"{IMPORTS}{patched_paths}\n{LOWER_PRIORITY}"], stderr=subprocess.PIPE, text=True, check=True, timeout=120
    )  # fmt: skip
    assert "does not count against other sessions" in child.stderr
