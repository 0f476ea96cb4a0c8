"""Functions that other processes of these tests import by name."""

import os
import time
from pathlib import Path

from functions import Retries, call, function

STUCK = (0, 1)


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


@function(retries=Retries(max_attempts=3, backoff_s=0.01, max_lost=100))
def risky(path: str, number: int) -> int:
    """Tell its process, so that a test can kill it, and take a moment."""
    return _in_danger(path, number)


@function(retries=Retries(max_lost=0))
def fragile(path: str, number: int) -> int:
    """The same, but the first worker that dies is the last."""
    return _in_danger(path, number)


def _in_danger(path: str, number: int) -> int:
    """The first run of the stuck ones lasts until it is killed."""
    with Path(path).open("a+") as file:
        file.seek(0)
        again = any(line.startswith(f"{number}:") for line in file)
        file.write(f"{number}:{os.getpid()}\n")
    time.sleep(600 if number in STUCK and not again else 0.05)
    return number
