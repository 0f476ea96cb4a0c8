"""Windows of requests to a served model, alone and beside something else, in turns: what that does to its p99.

One row is sent about `rate` times a second, whatever became of those before, and its time is from when it was due. How late the caller's
own timer was is printed too: no answer can be steadier than that. Run by root, the caller has real-time priority, as if it
were on a machine of its own; else it waits for a CPU that others fill, and that counts. This module is also the platform's project.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toque.load.benchmarks.harness import NotPossible, say
from toque.load.benchmarks.open_loop import OpenLoop, ask_steadily, at_once
from toque.load.benchmarks.servers import Platform
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, headers_of, json_body, register
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.unmonitored import unmonitored

MODEL, PROJECT = "mlp", "toque.load.benchmarks.platform.windows"
FEATURES: list[object] = []
MODELS = [unmonitored(MODEL)]
_WARM_S = 5.0


@dataclass(frozen=True, slots=True)
class Window:
    """Window of requests under measurement. normal, niced: CPUs that the machine spent meanwhile at niceness 0 or less, and above 0."""

    sent: OpenLoop
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

    def ask(for_s: float) -> Window:
        url, before, began = f"{platform.url}/v2/models/{MODEL}/infer", cpu_seconds(), time.perf_counter()
        with at_once():
            sent = ask_steadily(url, headers_of(token), json_body(), rate=rate, seconds=for_s, connections=16)
        normal, niced = (cpu_seconds() - before) / (time.perf_counter() - began)
        return Window(sent, float(normal), float(niced))

    platform.wait_for(MODEL)
    ask(_WARM_S)
    windows: dict[str, list[Window]] = {"alone": [], "beside": []}
    for number in range(rounds):
        for name, around in (("alone", nullcontext), ("beside", beside)):
            with around():
                windows[name].append(ask(seconds))
            window = windows[name][-1]
            say(f"{number} {name}: {window.sent}; CPUs {window.normal:.2f} + {window.niced:.2f} niced")
    return windows["alone"], windows["beside"]


def p99_ratio(alone: Sequence[Window], beside: Sequence[Window]) -> float:
    """Print the latencies of both, pooled, and return the ratio of their p99. Raises: NotPossible if a request failed."""
    if failed := sum(window.sent.failed for window in (*alone, *beside)):
        raise NotPossible(f"{failed} requests failed")
    p99 = []
    for name, windows in (("alone", alone), ("beside", beside)):
        latencies = np.concatenate([window.sent.latencies_ms for window in windows])
        late = np.quantile(np.concatenate([window.sent.late_ms for window in windows]), 0.99)
        p99.append(float(np.quantile(latencies, 0.99)))
        say(
            f"{name:7} p50 {np.median(latencies):6.2f} ms  p99 {p99[-1]:6.2f} ms  {len(latencies)} requests, "
            f"the caller's timer late by {late:.2f} ms (p99)"
        )
    return p99[1] / p99[0]


def cpu_seconds() -> npt.NDArray[np.float64]:
    """Read the seconds (2,) that all CPUs have spent at niceness 0 or less, the kernel's included, and above 0."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return np.array([user + system, nice]) / os.sysconf("SC_CLK_TCK")
