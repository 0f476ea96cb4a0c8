"""Windows of requests to a served model, alone and beside something else, in turns: what that does to its p99.

Locust asks for one row about `rate` times a second, whatever became of those before, and times each from when it was due. Run by root, it has
real-time priority, as if it were on a machine of its own; else it waits for a CPU that others fill, and that counts. This module is also
the platform's project.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toque.load.benchmarks.harness import NotPossible, say
from toque.load.benchmarks.servers import Platform
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, register
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.sending.processes import put_load
from toque.load.scenarios.target import Target
from toque.load.scenarios.windows import Measured, quantile_ms
from toque.load.unmonitored import unmonitored

MODEL, PROJECT = "mlp", "toque.load.benchmarks.platform.windows"
FEATURES: list[object] = []
MODELS = [unmonitored(MODEL)]


@dataclass(frozen=True, slots=True)
class Window:
    """Window of requests under measurement. normal, niced: CPUs that the machine spent meanwhile at niceness 0 or less, and above 0."""

    sent: Measured
    normal: float
    niced: float


def register_model(folder: Path) -> tuple[str, str]:
    """Register the model in a new store; returns the store's URL and a token that may predict."""
    store_url = (folder / "store").as_uri()
    return store_url, register(store_url, folder / "artifacts", {MODEL: BenchmarkModel(small_mlp())})


def alone_and_beside(
    platform: Platform,
    token: str,
    beside: Callable[[], AbstractContextManager[object]],
    *,
    rounds: int,
    seconds: float,
    rate: float,
) -> tuple[list[Window], list[Window]]:
    """Measure windows alone and windows within `beside`, in turns, so that a noisy neighbour hits both."""
    scenario = Scenario(shape=Steady(rate=rate, seconds=seconds), connections=16, as_users=True)
    windows: dict[str, list[Window]] = {"alone": [], "beside": []}
    platform.wait_for(MODEL)
    for number in range(rounds):
        for name, around in (("alone", nullcontext), ("beside", beside)):
            with around():
                before, began = cpu_seconds(), time.perf_counter()
                with _at_once():
                    sent = put_load(Target(platform.url, token, MODEL), name, scenario).measured()
                normal, niced = (cpu_seconds() - before) / (time.perf_counter() - began)
                windows[name].append(Window(sent, float(normal), float(niced)))
            say(
                f"{number} {name}: p99 {sent.latency_ms(0.99):.2f} ms, {sent.lost} failed, CPUs {normal:.2f} + {niced:.2f} niced"
            )
    return windows["alone"], windows["beside"]


@contextmanager
def _at_once() -> Iterator[None]:
    """Start what sends with real-time priority if allowed, which root is; it keeps that."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield
    os.sched_setscheduler(0, *before)


def p99_ratio(alone: Sequence[Window], beside: Sequence[Window]) -> float:
    """Print the latencies of both, pooled, and return the ratio of their p99. Raises: NotPossible if a request failed."""
    if failed := sum(window.sent.lost for window in (*alone, *beside)):
        raise NotPossible(f"{failed} requests failed")
    p99 = []
    for name, windows in (("alone", alone), ("beside", beside)):
        counts = np.sum([window.sent.counts for window in windows], axis=0)
        late = max(window.sent.late_ms for window in windows)
        p99.append(quantile_ms(counts, 0.99))
        say(
            f"{name:7} p50 {quantile_ms(counts, 0.5):6.2f} ms  p99 {p99[-1]:6.2f} ms  {counts.sum()} requests, "
            f"sent late by {late:.2f} ms at most"
        )
    return p99[1] / p99[0]


def cpu_seconds() -> npt.NDArray[np.float64]:
    """Read the seconds (2,) that all CPUs have spent at niceness 0 or less, the kernel's included, and above 0."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return np.array([user + system, nice]) / os.sysconf("SC_CLK_TCK")
