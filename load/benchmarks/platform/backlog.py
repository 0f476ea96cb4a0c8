"""Benchmark of a backlog of durable invocations on a slow store: `python -m toque.load.benchmarks.platform.backlog`.

One leader's executor takes in, starts and settles them, bodies in threads of its process, with each request to the store delayed. Bounds:
60 starts a second at 50 ms a request, no round over a minute, and none lost. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from typing import Any

from toque.functions import Context, function, use_context
from toque.functions.runtime.durable.executor import Executor, launcher
from toque.functions.runtime.durable.ledger import Ledger
from toque.load.benchmarks.timing import print_machine
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
        if name not in {"get", "find", "find_aged", "create", "put", "delete"}:
            return method

        def slow(*args: Any, **named: Any) -> Any:
            time.sleep(self._latency_s)
            return method(*args, **named)

        return slow


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--invocations", type=int, default=10_000)
    parser.add_argument("--latency-s", type=float, default=0.05)
    chosen = parser.parse_args()
    print_machine()
    launcher.THREADS = WORKERS
    nothing.in_thread = True
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{folder}/store"
        store: Any = open_store(url)
        client = Ledger(store, actor="client")
        ids = [client.submit(nothing, {"n": number}) for number in range(chosen.invocations)]
        used = Context(SlowStore(store, chosen.latency_s), url, actor="executor")
        rounds: list[float] = []
        begun = time.perf_counter()
        with use_context(used):
            executor = Executor(used, Ledger(used.store, actor="executor"), capacity=WORKERS)
            left = 1
            while left:
                round_begun = time.perf_counter()
                left = executor.poll()
                rounds.append(time.perf_counter() - round_begun)
        seconds = time.perf_counter() - begun
        statuses = Counter(client.read(invocation).status for invocation in ids)
    rate = chosen.invocations / seconds
    print(
        f"{chosen.invocations} at {chosen.latency_s * 1000:.0f} ms: {rate:.0f} a second; longest round {max(rounds):.1f} s; {dict(statuses)}"
    )
    return int(rate < STARTS or max(rounds) > ROUND_S or statuses != {"succeeded": chosen.invocations})


if __name__ == "__main__":
    sys.exit(main())
