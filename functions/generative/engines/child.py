"""Becomes an engine that ends with its parent: PARENT COMMAND…

Started with the interpreter alone. The kernel ends the engine when the process that asked for it ends, however it ends; that
survives the change into another program.
"""

import ctypes
import os
import signal
import sys

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Bind this process to its parent, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be bound to
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # the command line of an engine


if __name__ == "__main__":
    main()
