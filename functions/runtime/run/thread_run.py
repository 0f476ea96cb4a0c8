"""Run in a thread of this process, for what only waits for others: no process has to start, which takes seconds beside serving."""

from __future__ import annotations

import threading

from toque.functions.runtime.declaration import ONCE
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.forkserver import Job


class ThreadRun:
    """Job in a thread of its own. Nobody can kill it: it ends by the timeouts of what it calls."""

    def __init__(self, name: str, job: Job) -> None:
        self._job = job
        self._outcome: Outcome
        self._thread = threading.Thread(target=self._run, name=f"function-{name}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether the job has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def outcome(self) -> Outcome:
        """Wait for the job's end and return its outcome."""
        self._thread.join()
        return self._outcome

    def kill(self) -> None:
        """Leave the job to its end."""

    def _run(self) -> None:
        try:
            self._outcome = self._job()
        except BaseException as error:  # noqa: BLE001  # told to whoever waits, as of a process that died
            self._outcome = Outcome.failed(error, retries=ONCE)
