"""A workflow that stands still after each step until a test lets it go on, and a process that executes it."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import ray

from functions import Cron, Retries, call, function
from functions.runtime.context import context
from functions.runtime.durable.executor import Executor
from functions.runtime.durable.ledger import Ledger
from functions.runtime.triggers.schedule import Schedule, run_due

STEPS = 10


@function
def leave(folder: str, word: str) -> str:
    """A step whose effect can be counted."""
    with Path(folder, "effects").open("a") as file:
        file.write(f"{word}\n")
    return word


@function(retries=Retries(max_lost=50, backoff_s=0.01))
def gated(folder: str) -> list[str]:
    """Ten steps; tells which process runs it, and waits after each for a file that lets it go on."""
    words = []
    for number in range(STEPS):
        words.append(call(leave, folder, f"step{number}"))
        Path(folder, "pid").write_text(str(os.getpid()))
        while not Path(folder, f"go{number}").exists():
            time.sleep(0.01)
    return words


@function
def strike(at: datetime) -> str:
    """A clock's stroke."""
    return at.isoformat()


OFTEN = Schedule("often", strike, Cron("* * * * *", tick_as="at", catch_up="all", overlap="queue"))


def tick(folder: str) -> None:
    """A ticker in a process of its own: what time it is stands in the file `now`."""
    used = context()
    executor = Executor(used, Ledger(used.store, actor=used.actor, lease_s=1.0))
    print("ready", flush=True)  # noqa: T201  # the test waits for this line
    while True:
        run_due(used, now=datetime.fromisoformat(Path(folder, "now").read_text()), schedules=[OFTEN])
        executor.poll()
        time.sleep(0.005)


def hold() -> None:
    """A cluster of two CPUs in a process of its own; says its address."""
    own = {"address": "local", "num_cpus": 2, "include_dashboard": False}
    started = ray.init(**own, log_to_driver=False, configure_logging=False)
    print(started.address_info["gcs_address"], flush=True)  # noqa: T201  # the test waits for this line
    signal.pause()


def main(where: str) -> None:
    """An executor in a process of its own, with leases of one second.

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
