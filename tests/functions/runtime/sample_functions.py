"""Functions that other processes of these tests import by name."""

import os
import time
from pathlib import Path

from toque.functions import Invocation, Retries, call, function

HANGING = (0, 1)


@function
def append_word(path: str, word: str) -> str:
    """Append a word to a file."""
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return word


@function
def read_gone() -> str:
    """Read an invocation that does not exist."""
    return Invocation.of("gone").status()


@function(retries=Retries(max_lost=50, backoff_s=0.01))
def ten_steps(path: str, pause_s: float = 0.0) -> list[str]:
    """A workflow of ten steps."""
    words = []
    for number in range(10):
        words.append(call(append_word, path, f"step{number}"))
        time.sleep(pause_s)
    return words


@function(retries=Retries(max_attempts=3, backoff_s=0.01, max_lost=100))
def killable(path: str, number: int) -> int:
    """Write its process id, so that a test can kill it, and run for a moment."""
    return _run_until_killed(path, number)


@function(retries=Retries(max_lost=0))
def killable_once(path: str, number: int) -> int:
    """Like `killable`, but dead after the first worker that is lost."""
    return _run_until_killed(path, number)


def _run_until_killed(path: str, number: int) -> int:
    """Write the process id; the first run of a HANGING number lasts until it is killed."""
    with Path(path).open("a+") as file:
        file.seek(0)
        again = any(line.startswith(f"{number}:") for line in file)
        file.write(f"{number}:{os.getpid()}\n")
    time.sleep(600 if number in HANGING and not again else 0.05)
    return number
