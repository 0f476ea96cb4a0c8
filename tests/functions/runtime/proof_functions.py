"""Workflow that pauses after each step until a test lets it go on, and the processes that execute it."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import ray

from toque.functions import Cron, Retries, call, function
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.triggers.schedule import Schedule, run_due

STEPS = 10


@function
def append_effect(folder: str, word: str) -> str:
    """Append a word to a file, so that a test can count the effects."""
    with Path(folder, "effects").open("a") as file:
        file.write(f"{word}\n")
    return word


@function(retries=Retries(max_lost=50, backoff_s=0.01))
def gated(folder: str) -> list[str]:
    """Run ten steps; after each, write the process id and wait for the file that lets the workflow go on."""
    words = []
    for number in range(STEPS):
        words.append(call(append_effect, folder, f"step{number}"))
        Path(folder, "pid").write_text(str(os.getpid()))
        while not Path(folder, f"go{number}").exists():
            time.sleep(0.01)
    return words


@function
def record_tick(at: datetime) -> str:
    """Return the time of the tick."""
    return at.isoformat()


EVERY_MINUTE = Schedule(
    "often", record_tick, Cron("* * * * *", tick_as="at", catch_up="all", overlap="queue")
)


def tick(folder: str) -> None:
    """Tick in a process of its own, at the time that the file `now` holds."""
    used = context()
    executor = Executor(used, Ledger(used.store, actor=used.actor, lease_s=1.0))
    print("ready", flush=True)  # noqa: T201  # the test waits for this line
    while True:
        run_due(used, now=datetime.fromisoformat(Path(folder, "now").read_text()), schedules=[EVERY_MINUTE])
        executor.poll()
        time.sleep(0.005)


def start_cluster() -> None:
    """Start a cluster of two CPUs in this process and print its address."""
    own = {"address": "local", "num_cpus": 2, "include_dashboard": False}
    started = ray.init(**own, log_to_driver=False, configure_logging=False)
    print(started.address_info["gcs_address"], flush=True)  # noqa: T201  # the test waits for this line
    signal.pause()


def execute(where: str) -> None:
    """Run an executor in this process, with leases of one second.

    where: "local", "own cluster", or the address of a cluster that runs.
    """
    if where != "local":
        own = {"address": "local", "num_cpus": 2, "include_dashboard": False}
        ray.init(
            **(own if where == "own cluster" else {"address": where}),
            log_to_driver=False,
            configure_logging=False,
        )
    used = context()
    executor = Executor(used, Ledger(used.store, actor=used.actor, lease_s=1.0))
    print("ready", flush=True)  # noqa: T201  # the test waits for this line
    while True:
        executor.poll()
        time.sleep(0.02)
