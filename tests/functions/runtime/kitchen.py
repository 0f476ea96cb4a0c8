"""Functions that other processes of these tests import by name."""

import os
import sys
import time
from pathlib import Path

from functions import Resources, Retries, call, function
from functions.runtime.context import context
from functions.runtime.executor import Executor
from functions.runtime.ledger import Ledger


@function
def peel(path: str, word: str) -> str:
    """Leave a word in a file."""
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return word


@function(retries=Retries(max_lost=50, backoff_s=0.01))
def ten_steps(path: str, pause_s: float = 0.0) -> list[str]:
    """A workflow of ten steps."""
    words = []
    for number in range(10):
        words.append(call(peel, path, f"step{number}"))
        time.sleep(pause_s)
    return words


@function(retries=Retries(max_attempts=3, backoff_s=0.01, max_lost=100), resources=Resources(num_cpus=1))
def risky(path: str, number: int) -> int:
    """Tell its process, so that a test can kill it, and take a moment."""
    with Path(path).open("a") as file:
        file.write(f"{number}:{os.getpid()}\n")
    time.sleep(0.05)
    return number


def main() -> None:
    """An executor in a process of its own, on the store of the environment, with leases of three seconds."""
    used = context()
    executor = Executor(used, Ledger(used.store, actor=used.actor, lease_s=3.0))
    print("ready", flush=True)  # noqa: T201  # the test waits for this line
    while True:
        executor.poll()
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
