"""Low CPU priority for processes that train, so that serving on the same machine keeps its latency."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from toque.functions.runtime.declaration import NICENESS

__all__ = ["lower_priority"]

ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
AUTOGROUP = Path("/proc/self/autogroup")
RETRY_FOR_S, RETRY_EVERY_S = 30.0, 0.1  # Linux accepts one such write per 0.1 s, from all processes together
_logger = logging.getLogger(__name__)


@cache
def lower_priority() -> None:
    """Lower the CPU priority of this process and of those that it starts; later calls do nothing.

    Where Linux shares CPUs among sessions first (autogroups), niceness counts within a session only. A worker
    of Ray shares the session of the serving processes and would use up their share. So the process moves to a
    session of its own and gives that its niceness. A session's leader stays; so does a process that may not
    move, which is logged as a warning.
    """
    niceness = os.nice(NICENESS)
    if os.getsid(0) == os.getpid() or not autogroups_enabled():
        return
    try:
        _leave_session()
        _renice_session(niceness)
    except OSError as error:
        _logger.warning("niceness %d does not count against other sessions: %s", niceness, error)


def autogroups_enabled() -> bool:
    """Whether this kernel shares CPUs among sessions first."""
    with suppress(OSError):
        return ENABLED.read_text().strip() == "1" and os.access(AUTOGROUP, os.W_OK)
    return False


def _leave_session() -> None:
    """Move this process to a new session. Raises: OSError if that is not allowed."""
    leads_group = os.getpgrp() == os.getpid()
    if leads_group:  # the leader of a group has to leave it first, and leads one again a moment later
        os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()


def _renice_session(niceness: int) -> None:
    """Set the niceness of this process's autogroup. Raises: OSError if the kernel refuses it."""
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_EVERY_S)
        else:
            return
