"""What a process does with memory that tensors have freed, each case in a process of its own, whose heap is as it began."""

import multiprocessing
import platform
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from toque.functions.training.loop.process_group import SingleProcess, freed_memory_kept

MIB, TENSORS = 1 << 20, 24
PAGES = TENSORS * 16 * MIB // resource.getpagesize()


def step():
    """Fill memory as the gradients of layers of 16 MiB do, and free it; returns how many pages the kernel had to give."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(4 * MIB) for _ in range(TENSORS)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // MIB


def steps(context, answers):
    began = resident_mib()
    with context():
        first, *_, last = [step() for _ in range(6)]
        held = resident_mib() - began
    answers.put((first, last, held, resident_mib() - began))


def in_a_thread(context, answers):
    thread = threading.Thread(target=steps, args=(context, answers))
    thread.start()
    thread.join()


def run_apart(target, context):
    spawned = multiprocessing.get_context("spawn")
    answers = spawned.SimpleQueue()
    process = spawned.Process(target=target, args=(context, answers))
    process.start()
    process.join()
    assert process.exitcode == 0
    return answers.get()


@contextmanager
def around_another():
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        yield


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize("target", [steps, in_a_thread])
@pytest.mark.parametrize("context", [SingleProcess().memory, around_another])
def test_steps_use_the_memory_of_those_before_and_all_of_it_goes_back_at_the_end(target, context):
    first, last, held, left = run_apart(target, context)
    assert first > 0.9 * PAGES
    assert last < 0.02 * PAGES
    assert held > 0.9 * TENSORS * 16
    assert left < 0.2 * TENSORS * 16
