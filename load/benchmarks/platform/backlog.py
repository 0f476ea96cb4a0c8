"""Benchmark of a backlog of durable invocations on a slow store.

One leader's executor takes in, starts and settles them, bodies in threads of its process, with each request to the store delayed. Bounds:
60 starts a second at 50 ms a request, no round over a minute, and none lost. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from toque.functions import Context, function, use_context
from toque.functions.runtime.durable import workers
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.load.benchmarks.harness import Stopwatch, bound, main, temporary
from toque.registry import open_store

STARTS, ROUND_S = 60.0, 60.0
WORKERS = 256


@function
def nothing(n: int) -> int:
    """Return the argument, which takes no time."""
    return n


class SlowStore:
    """Store that takes a while for each request."""

    def __init__(self, store: Any, latency_s: float) -> None:
        self._store, self._latency_s = store, latency_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        slow = name in {"get", "find", "find_aged", "create", "put", "delete"}
        return partial(self._wait, method) if slow else method

    def _wait(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        time.sleep(self._latency_s)
        return method(*arguments, **named)


def run(*, invocations: int = 10_000, latency_s: float = 0.05) -> None:
    """Submit all invocations, and let the executor end them."""
    workers.THREADS = WORKERS
    nothing.in_thread = True
    with temporary() as folder:
        url = f"file://{folder}/store"
        store: Any = open_store(url)
        client = Ledger(store, actor="client")
        ids = [client.submit(nothing, {"n": number}) for number in range(invocations)]
        used = Context(SlowStore(store, latency_s), url, actor="executor")
        rounds = list[float]()
        watch = Stopwatch()
        with use_context(used):
            executor = Executor(used, Ledger(used.store, actor="executor"), capacity=WORKERS)
            left = 1
            while left:
                begun = time.perf_counter()
                left = executor.poll()
                rounds.append(time.perf_counter() - begun)
        rate = invocations / watch.wall_s
        done = sum(client.read(invocation).status == "succeeded" for invocation in ids)
    bound(f"starts a second at {latency_s * 1000:.0f} ms a request", rate, least=STARTS)
    bound("seconds of the longest round", max(rounds), most=ROUND_S)
    bound("invocations that succeeded", done, least=invocations)


if __name__ == "__main__":
    main(run)
