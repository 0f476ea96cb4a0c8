"""Time limit of an attempt: what its function or its submission declares; without either there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Self

from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.durable.workflow import Run
from toque.functions.runtime.errors import Cancelled
from toque.functions.runtime.run.deadline import waited_s
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.registry.errors import Unavailable

SAVE_S = 30.0
"""Seconds before its limit at which a run is asked to save; fewer than an executor gives to one that it asks to yield."""
_SAVE_PART = 0.25  # of a short limit


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """Longest run time of an attempt, without its waits for room. name: of the setting that declared it."""

    name: Literal["timeout_s", "limit_s"]
    seconds: float

    @classmethod
    def of(cls, function: DeclaredFunction, demand: Demand) -> Self | None:
        """Find the shorter of the function's limit and of its submission's; None if neither declares one."""
        own = [] if function.timeout_s is None else [cls("timeout_s", function.timeout_s)]
        submitted = [] if demand.limit_s is None else [cls("limit_s", demand.limit_s)]
        return min([*own, *submitted], key=lambda each: each.seconds, default=None)

    def __str__(self) -> str:
        return f"{self.name}={self.seconds:g}"

    def reached(self, what: str) -> str:
        """Text of the error of a run that has saved its state since its limit is near."""
        longer = ", or submit it with a longer limit_s" if self.name == "limit_s" else ""
        return f"{what} has reached {self} and saved its state: redrive it to go on for as long again{longer}"


@contextmanager
def asked_to_save(run: Run, limit: TimeLimit | None, demand: Demand) -> Iterator[threading.Event]:
    """Ask a run that can save its state to do so a little before its limit; the event is set once it is asked."""
    asked, ended = threading.Event(), threading.Event()
    if limit is None or not demand.preemptible:
        yield asked
        return
    save_s = min(SAVE_S, _SAVE_PART * limit.seconds)
    began = time.monotonic()

    def ask() -> None:
        while (left_s := limit.seconds - save_s - (time.monotonic() - began - waited_s())) > 0:
            if ended.wait(left_s):
                return
        if run.followed.record.preempting is None:  # else it saves already, for the queue
            with suppress(Unavailable, Cancelled):
                run.append({"kind": "preempting", "reason": f"{limit}, which it reaches in {save_s:g} s"})
                asked.set()

    thread = threading.Thread(target=ask, name=f"limit-{run.id}", daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
