"""A block is ended by another thread while it runs, and never before or after."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from toque.functions.runtime.errors import Cancelled
from toque.functions.runtime.run.interruption import Interruptible


def test_a_block_that_runs_is_ended() -> None:
    block = Interruptible()
    threading.Timer(0.05, block.interrupt).start()

    def run() -> None:
        with block:
            while True:
                time.sleep(0.001)

    with pytest.raises(Cancelled):
        run()


def test_nothing_is_ended_before_and_after_the_block() -> None:
    block = Interruptible()
    block.interrupt()
    with block:
        time.sleep(0)
    block.interrupt()
    for _ in range(1000):
        time.sleep(0)


def test_the_error_never_leaves_the_block_s_end() -> None:
    """Whenever the other thread comes: inside the block it is Cancelled, and what follows the block is left alone."""
    stop = threading.Event()
    block = Interruptible()

    def interrupt_again_and_again() -> None:
        while not stop.is_set():
            block.interrupt()

    thread = threading.Thread(target=interrupt_again_and_again)
    thread.start()
    after = cancelled = 0
    try:
        for _ in range(2000):
            try:
                with block:
                    time.sleep(0)
            except Cancelled:
                cancelled += 1
            after += 1
    finally:
        stop.set()
        thread.join()
    assert after == 2000
    assert cancelled


def test_a_process_of_its_own_is_ended_while_the_block_runs_alone() -> None:
    ended: list[bool] = []
    block = Interruptible(lambda: ended.append(True))
    block.interrupt()
    with block:
        block.interrupt()
    block.interrupt()
    assert ended == [True]


@pytest.mark.parametrize("body", ["pass", "block.interrupt()"])
def test_a_traced_thread_goes_on_after_the_block(body: str) -> None:
    """A debugger, coverage or hypothesis traces; other threads ask for the interpreter meanwhile."""
    program = f"""
import os, sys, threading
from toque.functions.runtime.run.interruption import Cancelled, Interruptible

block = Interruptible()
try:
    with block:
        {body}
except Cancelled:
    pass

def compute():
    while True:
        sum(range(100))

for _ in range(8):
    threading.Thread(target=compute, daemon=True).start()
sys.settrace(lambda *_: None)

def call():
    pass

for _ in range(500):
    call()
print("went on", flush=True)
os._exit(0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout == "went on\n", ended.stderr
