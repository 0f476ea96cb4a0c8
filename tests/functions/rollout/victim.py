"""A tick in a process of its own, which kills itself at a chosen request to the store."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from typing import Any

from toque.functions.prediction_log import outcomes
from toque.functions.rollout.controller import Rollouts
from toque.registry import Registry, open_store


class FusedStore:
    """A store whose process is killed at its `fuse`-th request: before it is made, or right after."""

    def __init__(self, store: Any, fuse: int, *, after: bool) -> None:
        self._store, self._fuse, self._after = store, fuse, after

    def __getattr__(self, name: str) -> Any:
        if name not in {"find", "get", "put", "create"}:
            return getattr(self._store, name)

        def request(*args: Any) -> Any:
            self._fuse -= 1
            if self._fuse == 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = getattr(self._store, name)(*args)
            if self._fuse == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return request


def rollouts_of(store: Any, model: str, now: datetime) -> Rollouts:
    """The rollouts of a model, with its registry, in one store at one moment."""
    return Rollouts(
        model,
        store=store,
        registry=Registry(store, actor="ticker", clock=lambda: now),
        read=lambda start, end: outcomes(store, model, start, end, labelled_only=False),
        clock=lambda: now,
        actor="ticker",
    )


def tick(url: str, model: str, now: datetime, fuse: int, after: bool) -> None:  # noqa: FBT001 - a process's arguments
    """Tick once, unless killed on the way."""
    rollouts_of(FusedStore(open_store(url), fuse, after=after), model, now).tick()
