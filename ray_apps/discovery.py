"""Has every function of the platform and of the user's project declared, in whatever time that takes."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from functions.runtime import catalog


def discover_gently(project: str | None) -> None:
    """Import every function there is in a thread of low priority, and wait for it.

    Seconds of imports then give way to whatever else starts. Raises: ImportError.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="discover", initializer=_give_way) as beside:
        beside.submit(catalog.discover, project=project).result()


def _give_way() -> None:
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
