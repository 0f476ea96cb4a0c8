"""Stepping back: how a process that trains leaves its machine to what serves there."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from functions.runtime.declaration import NICENESS

__all__ = ["lower_priority"]

ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
AUTOGROUP = Path("/proc/self/autogroup")
RETRY_FOR_S, RETRY_EVERY_S = 30.0, 0.1  # Linux takes one such word in a tenth of a second, whosever
_logger = logging.getLogger(__name__)


@cache
def lower_priority() -> None:
    """Let this process, and those that it starts, come after what else wants the CPU; once.

    Where Linux shares CPUs among sessions first (autogroups), niceness counts within a session only. A worker of Ray is in
    the session of those that serve: it would use up their share, and their niceness 0 would not get it back from other
    sessions. So it goes into a session of its own, which is as nice. A session's leader stays where it is; so does who may
    not go, which is told in the log and no error.
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
    """Found a session. Raises: OSError if that is not allowed."""
    leads_group = os.getpgrp() == os.getpid()
    if leads_group:  # such a one has to leave it first, and leads it again a moment later
        os.setpgid(0, os.getpgid(os.getppid()))
    os.setsid()


def _renice_session(niceness: int) -> None:
    """Give the autogroup of this process its niceness. Raises: OSError if the kernel does not take it."""
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
