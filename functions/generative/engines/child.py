"""Becomes an engine that ends with its parent: PARENT COMMAND…

Started with the interpreter alone. The kernel ends the engine when the process that asked for it ends, however it ends; that
survives the change into another program, and so does its place among those that are ended first when memory runs out: an engine
is started anew, and keeps nothing.
"""

import contextlib
import ctypes
import os
import signal
import sys

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_ENDED_FIRST = "800"  # of 1000


def main() -> None:
    """Bind this process to its parent, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123  # imports little
            file.write(_ENDED_FIRST)
    if os.getppid() != parent:  # it ended before it could be bound to
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # the command line of an engine


if __name__ == "__main__":
    main()
