"""A process of a platform that answers, labels, submits and ticks, until its file `stop` is there; run by two releases at once.

It uses only names that both releases have. Usage: member.py NAME FOLDER REDIS_URL, with the release and the folder of its
`upgrade_project` on PYTHONPATH. What was acknowledged is in `FOLDER/acknowledged-NAME`, a line each.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import upgrade_project as tasks  # type: ignore[import-not-found]  # the test writes it

from toque import functions
from toque.functions import Context, use_context
from toque.functions.prediction_log import Label, LogWriter, drain, encode_labels, encode_prediction, epoch_us
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.triggers.events import publish, run_events
from toque.registry import Registry, open_store

MOST = 3  # submissions, which take long on a busy machine
SUBMIT_EVERY = 3


class Member:
    """One process. name: also begins the ids of what it writes."""

    def __init__(self, name: str, folder: Path, redis_url: str) -> None:
        url = f"file://{folder}/store"
        self._name, self._folder, self._redis_url = name, folder, redis_url
        self._used = Context(open_store(url), url, redis_url, project="upgrade_project", actor=name)
        self._registry = Registry(self._used.store, actor=name)
        self._logs = {
            kind: LogWriter(folder / "wal", kind, redis_url, poll_s=0.05)
            for kind in ("predictions", "labels")
        }
        self._acknowledged = (folder / f"acknowledged-{name}").open("a")

    def run(self) -> None:
        """Work until told to stop, then leave in order."""
        self._note("code", str(Path(functions.__file__).resolve()))
        catalog.discover(project="upgrade_project")
        with use_context(self._used):
            executor = Executor(self._used, ledger_of(self._used), code_patience_s=2.0)
            number = 0
            while not (self._folder / f"stop-{self._name}").exists():
                self._answer(number)
                if number % SUBMIT_EVERY == 0 and number < MOST * SUBMIT_EVERY:
                    self._submit(number)
                run_events(self._used)
                executor.poll()
                drain(self._used.store, self._redis_url)
                number += 1
            executor.close()
        for log in self._logs.values():
            log.close()

    def _answer(self, number: int) -> None:
        """Answer and label, and check that what the other release does to the model is understood."""
        name, now = f"{self._name}-{number}", datetime.now(UTC)
        self._logs["predictions"].append(
            encode_prediction(
                id=name,
                model="late",
                version=self._registry.traffic("late").assign(name).version,
                arm="champion",
                shadow=False,
                unit=name,
                at_us=epoch_us(now),
                latency_ms=1.0,
                rows=1,
                numeric=np.array([[1.5]], np.float32),
                categorical=[["a"]],
                outputs=np.array([[0.5]], np.float32),
            )
        )
        self._logs["labels"].append(encode_labels([Label(name, 1.0, now, now)]))
        self._note("prediction", name)
        self._registry.set_version_tags("late", 1, {f"seen-by-{self._name}": str(number)})

    def _submit(self, number: int) -> None:
        name = f"{self._name}-{number}"
        self._note("add", tasks.add.submit(number, key=name).id)
        self._note("steps", tasks.two_steps.submit(number, key=name).id)
        self._note("changed", tasks.CHANGED.submit(number, key=name).id)
        publish("orders", {"order": name}, key=name)
        self._note("event", name)

    def _note(self, kind: str, name: str) -> None:
        self._acknowledged.write(json.dumps([kind, name]) + "\n")
        self._acknowledged.flush()


if __name__ == "__main__":
    Member(sys.argv[1], Path(sys.argv[2]), sys.argv[3]).run()
