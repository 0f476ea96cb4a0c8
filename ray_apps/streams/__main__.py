"""Follow the stream sources of a platform in this process until it is ended: `python -m toque.ray_apps.streams`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from functools import cache

from toque.functions.runtime.context import context_of
from toque.ray_apps.streams.follower import Followers
from toque.registry import Access


def main() -> None:
    """Follow the sources of all workspaces until SIGTERM or an interrupt, then commit what was read."""
    logging.basicConfig(level=logging.INFO)
    used = context_of(os.environ)
    access = Access(used.store, actor=used.actor)
    in_workspace = cache(used.in_workspace)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    followers = Followers(lambda: [in_workspace(each.name) for each in access.known_workspaces()])
    followers.run(stop)


if __name__ == "__main__":
    main()
