"""Benchmark of what a predictor does beside answering: predictors that differ in one thing take turns, and the first is the baseline.

log: without the prediction log, and with it. modes: of the log; Redis then has a replica, since it runs on the predictors' machine and mode
`two_nodes` waits for one. metrics: without Prometheus's series, and with them. traces: without traces, and with a share of the requests kept,
whose spans a collector in this process counts, so that a run in which none came is no proof. `--code A B` compares the code in two folders, such
as two worktrees. stamps: only what the stamps of one request cost, in CPU time of this thread, the best of nine.

Each is one process, without Ray and HAProxy, with the small MLP and a Redis that the log is shipped to. A round is all of them, one after the
other, so a neighbour that comes hits all. Two processes of one program differ by some percent for as long as they live, so they are started
several times: a ratio is the mean over starts of the median over rounds, with its standard error. The CPU of a request is the process's own.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import psutil
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toque.clusters.telemetry.tracing import Keeper, Tracing, begin_request, mark, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of
from toque.load.benchmarks.harness import Ratio, in_turns, main, say
from toque.load.benchmarks.servers import posts
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, Predictor, prepared
from toque.load.benchmarks.serving.floor import small_mlp


@dataclass(frozen=True, slots=True)
class Variant:
    """Predictor that is compared, by its flags and its environment beside the common one."""

    name: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    @classmethod
    def of_code(cls, folder: str) -> Variant:
        """Make the predictor of the code in a folder."""
        own = {"PYTHONPATH": str(Path(folder).resolve()), "PYTHONSAFEPATH": "1"}
        return cls(Path(folder).name, environment=own)


VARIANTS = {
    "log": (Variant("not-logged", ("--no-log",)), Variant("logged")),
    "metrics": (Variant("uncounted", ("--no-metrics",)), Variant("counted")),
    "modes": tuple(
        Variant(mode, environment={"TOQUE_LOG_MODE": mode}) for mode in ("file", "redis", "two_nodes")
    ),
}
Starts = list[dict[tuple[str, int], list[tuple[float, float]]]]
"""Requests a second and CPU microseconds of a request, by start, by variant and connections, round by round."""


def run(
    what: Literal["log", "modes", "metrics", "traces", "stamps"] = "log",
    *,
    code: Annotated[tuple[str, ...], "compare the code in two folders"] = (),
    share: Annotated[float, "of requests whose traces are kept"] = 0.01,
    starts: Annotated[int, "at least 2"] = 6,
    rounds: int = 4,
    seconds: float = 1,
    connections: tuple[int, ...] = (1, 16, 64),
) -> None:
    """Measure the predictors and print the result."""
    if what == "stamps":
        print_stamps()
        return
    with posts() as (url, spans):
        own = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "TOQUE_TRACE_SHARE": str(share)}
        traced = (Variant("untraced"), Variant(f"share {share:g}", environment=own))
        variants = [Variant.of_code(folder) for folder in code] or VARIANTS.get(what, traced)
        measure = partial(_one_start, variants, rounds, seconds, connections, replicas=what == "modes")
        _report([measure() for _ in range(starts)], [variant.name for variant in variants], connections)
        if what == "traces":
            say(f"{len(spans)} batches of spans came, {sum(len(body) for _, body in spans) / 1e6:.1f} MB")


def _report(starts: Starts, names: Sequence[str], connections: Sequence[int]) -> None:
    for count in connections:
        for name in names:
            rates = [[rate for rate, _ in start[name, count]] for start in starts]
            base = [[rate for rate, _ in start[names[0], count]] for start in starts]
            cpu_us = np.mean([np.median([cpu for _, cpu in start[name, count]]) for start in starts])
            ratios = [Ratio.of(*pair).median for pair in zip(rates, base, strict=True)]
            error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
            say(
                f"{name:12}{count:4} connections{np.mean(np.median(rates, axis=1)):8.0f} requests/s{cpu_us:6.0f} us of CPU each"
                f"{np.mean(ratios):8.3f} +- {error:.3f} of {names[0]}"
            )


def _one_start(
    variants: Sequence[Variant], rounds: int, seconds: float, connections: Sequence[int], *, replicas: bool
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    with prepared({"mlp": BenchmarkModel(small_mlp())}, replica=replicas) as place, ExitStack() as stack:
        ours: dict[str, Predictor] = {}
        for variant in variants:
            serving = place.run("mlp", "--standalone", *variant.flags, environment=variant.environment)
            ours[variant.name] = stack.enter_context(serving)
            ours[variant.name].target("mlp").ask(16, 2, place.folder)  # warm
        calls = {
            (name, count): partial(_round, one, count, seconds, place.folder)
            for count in connections
            for name, one in ours.items()
        }
        return in_turns(calls, rounds)


def _round(ours: Predictor, connections: int, seconds: float, folder: Path) -> tuple[float, float]:
    process = psutil.Process(ours.child.pid)
    before = process.cpu_times()
    rate = ours.target("mlp").ask(connections, seconds, folder).rate
    after = process.cpu_times()
    return rate, (after.user + after.system - before.user - before.system) / (rate * seconds) * 1e6


def print_stamps() -> None:
    """Print what a request costs without tracing, with it and not kept, and kept with its spans made."""
    headers = {b"authorization": b"Bearer x", b"content-type": b"application/json"}

    def request() -> None:
        trace = begin_request(headers)
        mark("token")
        mark("read")
        trace.answered_by("5b" * 16, "late", 3, "champion", id_made_here=True)
        trace.mark("model")
        trace.row()
        trace.mark("log")
        mark("encode")
        trace.finish("POST", "/v2/models/late/infer", 200)

    provider = provider_of("predictor", InMemorySpanExporter())
    kept = Tracing(Keeper(1.0, 60.0, kept_per_s=1e9), provider=provider)
    for name, tracing, number in (
        ("off", None, 20_000), ("on, not kept", Tracing(Keeper(0.01, 60.0)), 20_000), ("kept", kept, 300),
    ):  # fmt: skip
        with use_tracing(tracing):
            best_s = min(timeit.repeat(request, number=number, repeat=9, timer=time.thread_time)) / number
        say(f"{name:14}{best_s * 1e6:8.1f} us")
    provider.shutdown()


if __name__ == "__main__":
    main(run, "torch")
