"""Uploads one file for the training that started it: reads store, key and path as a pickle, and answers with an error or None.

The kernel ends it with the thread that waits for it, and so with a training that is killed: what it was uploading counts for nothing.
"""

import ctypes
import os
import pickle
import signal
import sys

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICENESS = 19


def main() -> None:
    """Upload at the lowest priority, bound to the parent whose process id is the argument."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):  # it ended before this was bound to it
        sys.exit(1)
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    store, key, path = pickle.load(sys.stdin.buffer)  # noqa: S301  # the parent's own
    error: Exception | None = None
    try:
        store.upload(key, path)
    except Exception as raised:  # noqa: BLE001  # the parent raises it
        error = raised
    pickle.dump(error, sys.stdout.buffer)


if __name__ == "__main__":
    main()
