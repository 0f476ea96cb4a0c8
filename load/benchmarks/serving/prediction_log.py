"""Benchmark of the prediction log: one predictor that logs and one that does not, in turns; or one for each mode of the log.

With --code both log, one by the code in each of two folders, such as two worktrees. With --modes the baseline is mode `file`; Redis has a
replica, since it runs on the predictors' machine and mode `two_nodes` then waits for one. Each in one process, without Ray and HAProxy, with
the small MLP and a Redis that the log is shipped to. A round is all of them, one after the other, so a neighbour that comes hits all. Two
processes of the same program differ by some percent for as long as they live, so they are started several times: a ratio is the mean over
starts of the median over rounds, with its standard error. The CPU of a request is the process's own, answering, shipping and following the
policy together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from toque.load.benchmarks.harness import Ratio, in_turns, main, say, temporary
from toque.load.benchmarks.servers import redis_server
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, Predictor, need, predictor, register
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.processes import cpu_s


@dataclass(frozen=True, slots=True)
class Variant:
    """Predictor that is compared, by its flags and its environment beside the common one; the first of several is the baseline."""

    name: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    @classmethod
    def of_code(cls, folder: str) -> Variant:
        """Make the predictor of the code in a folder."""
        own = {"PYTHONPATH": str(Path(folder).resolve()), "PYTHONSAFEPATH": "1"}
        return cls(Path(folder).name, environment=own)


LOGGED = (Variant("not-logged", ("--no-log",)), Variant("logged"))
MODES = tuple(Variant(mode, environment={"TOQUE_LOG_MODE": mode}) for mode in ("file", "redis", "two_nodes"))
Rounds = dict[tuple[str, int], list[tuple[float, float]]]
"""Requests a second and CPU microseconds of a request, by variant and connections, round by round."""


def run(
    *,
    modes: Annotated[bool, "compare the modes of the log"] = False,
    code: Annotated[tuple[str, ...], "compare the code in two folders"] = (),
    starts: Annotated[int, "at least 2"] = 6,
    rounds: int = 4,
    seconds: float = 1,
    connections: tuple[int, ...] = (1, 16, 64),
) -> None:
    """Measure the predictors and print the result."""
    variants = [Variant.of_code(folder) for folder in code] or (MODES if modes else LOGGED)
    compare_starts(variants, starts, rounds, seconds, connections, replicas=modes)


def compare_starts(
    variants: Sequence[Variant],
    starts: int,
    rounds: int,
    seconds: float,
    connections: tuple[int, ...],
    *,
    replicas: bool = False,
) -> None:
    """Measure predictors against the first of them, in several starts, and print the result. replicas: Redis has one."""
    need("wrk")
    found = [_one_start(variants, rounds, seconds, connections, replicas=replicas) for _ in range(starts)]
    base = variants[0].name
    for count in connections:
        for name in (variant.name for variant in variants):
            rates = [[rate for rate, _ in start[name, count]] for start in found]
            against = [[rate for rate, _ in start[base, count]] for start in found]
            cpu_us = np.mean([np.median([cpu for _, cpu in start[name, count]]) for start in found])
            ratios = [Ratio.of(*pair).median for pair in zip(rates, against, strict=True)]
            error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
            say(
                f"{name:12}{count:4} connections{np.mean(np.median(rates, axis=1)):8.0f} requests/s{cpu_us:6.0f} us of CPU each"
                f"{np.mean(ratios):8.3f} +- {error:.3f} of {base}"
            )


def _one_start(
    variants: Sequence[Variant], rounds: int, seconds: float, connections: tuple[int, ...], *, replicas: bool
) -> Rounds:
    with temporary() as folder, ExitStack() as stack:
        store_url = f"file://{folder}/store"
        token = register(store_url, folder / "artifacts", {"mlp": BenchmarkModel(small_mlp())})
        redis_url = stack.enter_context(redis_server(folder, appends=True))
        if replicas:
            stack.enter_context(redis_server(folder, appends=True, replica_of=redis_url))
        calls = {}
        for variant in variants:
            ours = stack.enter_context(
                predictor(
                    folder, store_url, token, "mlp", "--standalone", *variant.flags,
                    redis_url=redis_url, environment=variant.environment,
                )
            )  # fmt: skip
            ours.target("mlp").ask(16, 2, folder)  # warm
            for count in connections:
                calls[variant.name, count] = _round(ours, count, seconds, folder)
        by_count = sorted(calls, key=lambda key: connections.index(key[1]))
        return in_turns({key: calls[key] for key in by_count}, rounds)


def _round(
    ours: Predictor, connections: int, seconds: float, folder: Path
) -> Callable[[], tuple[float, float]]:
    def measure() -> tuple[float, float]:
        before = cpu_s(ours.child.pid)
        rate = ours.target("mlp").ask(connections, seconds, folder).rate
        return rate, (cpu_s(ours.child.pid) - before) / (rate * seconds) * 1e6

    return measure


if __name__ == "__main__":
    main(run, "torch")
