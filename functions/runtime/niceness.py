"""Stepping back: how a process that trains leaves its machine to what serves there."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from functions.runtime.declaration import NICENESS

__all__ = ["step_back"]

AUTOGROUP = Path("/proc/self/autogroup")
PATIENCE_S, AGAIN_S = 30.0, 0.1  # Linux takes one such word in a tenth of a second, whosever
_logger = logging.getLogger(__name__)


def step_back() -> None:
    """Let this process, and those that it starts, come after what else wants the CPU.

    Where Linux shares CPUs among sessions first (autogroups), niceness counts within a session only. A worker of Ray is in
    the session of those that serve: it would use up their share, and their niceness 0 would not get it back from other
    sessions. So it goes into a session of its own, which is as nice. A session's leader stays where it is.
    """
    niceness = os.nice(NICENESS)
    if os.getsid(0) == os.getpid() or not os.access(AUTOGROUP, os.W_OK):
        return
    if (
        os.getpgrp() == os.getpid()
    ):  # the leader of a group has to leave it first; a moment later its group is again its own
        os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            if time.monotonic() > deadline:
                _logger.warning(
                    "%s took no niceness within %s s: this session has none", AUTOGROUP, PATIENCE_S
                )
                return
            time.sleep(AGAIN_S)
        else:
            return
