"""Runs without a cluster: a thread, or a child process if the run must be killed at its timeout."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from toque.functions.runtime.declaration import ONCE, Retries
from toque.functions.runtime.errors import Cancelled
from toque.functions.runtime.run.execution import Outcome, run_with_retries
from toque.functions.runtime.run.forkserver import Child, Job
from toque.functions.runtime.run.interruption import Interruptible


class LocalRun:
    """Run in a thread of its own; with `timeout_s` each attempt is a child process that is killed after it."""

    def __init__(
        self, name: str, job: Job, *, retries: Retries, timeout_s: float | None, module: str = ""
    ) -> None:
        self._name = name
        self._module = module
        self._job = job
        self._retries = retries
        self._timeout_s = timeout_s
        self._outcome: Outcome | None = None
        self._child: Child | None = None
        self._cancelled = threading.Event()
        self._running = Interruptible()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=f"function-{name}", daemon=True
        )
        self._thread.start()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the result; see `Future.result`."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._name} has not ended after {timeout_s} s of waiting; it goes on")
        if self._outcome is None:
            raise Cancelled(f"{self._name} was cancelled")
        return self._outcome.unwrap()

    def done(self) -> bool:
        """Whether the run has ended; see `Future.done`."""
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Kill the child process, or raise Cancelled in the thread at its next bytecode."""
        self._cancelled.set()
        if self._child:
            self._child.kill()
        else:
            self._running.interrupt()

    def _run(self) -> None:
        try:
            with self._running:
                outcome = run_with_retries(self._attempt, retries=self._retries, pause=self._cancelled.wait)
        except Cancelled:
            return
        if not self._cancelled.is_set():
            self._outcome = outcome

    def _attempt(self) -> Outcome:
        if self._cancelled.is_set():
            raise Cancelled(self._name)
        if self._timeout_s is None:
            return self._job()
        try:
            self._child = Child(self._name, retries=self._retries, module=self._module)
        except Exception as error:  # noqa: BLE001  # arguments that cannot be pickled, a fork server that cannot start
            return Outcome.failed(error, retries=ONCE)
        return self._child.run(self._job).outcome(self._timeout_s)
