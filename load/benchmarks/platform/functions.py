"""Benchmark of functions against bare Ray, in one run: `python -m toque.load.benchmarks.platform.functions`.

Bare Ray and ours take turns, so that what else the machine does hits both. Bounds: `.remote` within 1.3x, a map
of 1,000 within 1.2x, 100 durable invocations accepted a second on a folder from eight callers at a time (one alone
waits for the disk four times an invocation), at most 3 store requests to accept and 3 to finish, 1 ms that the gateway
adds to a no-op over a bare ASGI application. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import numpy as np
import ray

from toque.functions import Context, function, use_context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import executor_of, ledger_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.load.benchmarks.timing import Timing, print_machine
from toque.registry import Access, ObjectStore, open_store

ROUNDS = 300
MAPS = 7
ITEMS = 1_000
ACCEPTED = 300
CALLERS = 8
STARTS = 10


@function(http=True)
def nothing(n: int) -> int:
    """Return the argument, as a declared function."""
    return n


@function(warm=1)
def at_hand(n: int) -> int:
    """Return the argument, as a function with a warm worker."""
    return n


def bare(n: int) -> int:
    """Return the argument, as an undeclared function."""
    return n


class CountingStore:
    """Store that counts its requests."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.requests[name] += 1
            return method(*args, **kwargs)

        return counted if callable(method) else method

    def __reduce__(self) -> Any:
        return open_store, (self.store.url,)


def main() -> int:
    """Run every case; the exit code says whether every bound held."""
    print_machine("ray", "pydantic")
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{folder}/store"
        used = _at(url)
        held = [_accepting(_at(f"{url}-accepting")), _requests(used), _gateway(f"{url}-gateway")]
        _starts(_at(f"{url}-starts"), "local child process")
        _durable(used, "local child process")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        with use_context(replace(used, actor="bench-ray")):
            held += [_remote(), _map()]
        _starts(_at(f"{url}-starts-ray"), "Ray worker")
        _durable(replace(used, actor="bench-ray"), "Ray task")
        ray.shutdown()
    return 0 if all(held) else 1


def _at(url: str) -> Context:
    return Context(open_store(url), url, actor="bench")


def _remote() -> bool:
    task = ray.remote(bare)
    start = time.perf_counter()
    ray.get(task.remote(0))
    bare_cold_s = time.perf_counter() - start
    start = time.perf_counter()
    nothing.remote(0).result()
    print(
        f"first call: bare Ray {bare_cold_s * 1e3:.0f} ms, .remote {(time.perf_counter() - start) * 1e3:.0f} ms"
    )
    turns = [
        (_seconds(lambda: ray.get(task.remote(1))), _seconds(lambda: nothing.remote(1).result()))
        for _ in range(ROUNDS)
    ]
    return _compare(".remote, one at a time", turns[20:], bound=1.3)


def _map() -> bool:
    task = ray.remote(bare)
    items = list(range(ITEMS))
    turns = [
        (
            _seconds(lambda: ray.get([task.remote(each) for each in items])),
            _seconds(lambda: nothing.map(items)),
        )
        for _ in range(MAPS)
    ]
    return _compare(f".map over {ITEMS}", turns[1:], bound=1.2)


def _accepting(used: Context) -> bool:
    with use_context(used):
        nothing.submit(0)
        one_s = _seconds(lambda: [nothing.submit(each) for each in range(ACCEPTED)])
    many_s = _submit_together(used)
    with ProcessPoolExecutor(2) as pool:
        begun = time.perf_counter()
        list(pool.map(_submit_many, [used.store_url] * 2))
        two_s = time.perf_counter() - begun
    store = open_store(f"{used.store_url}-bare")
    bare_s = _seconds(
        lambda: [store.create(f"{kind}/{each}", b"x" * 500) for each in range(ACCEPTED) for kind in "ab"]
    )
    print(
        f"accepting one is {one_s / bare_s:.2f}x two bare writes of the store, {bare_s / ACCEPTED * 1e3:.1f} ms"
    )
    print(
        f"accepted durable invocations: {ACCEPTED / one_s:.0f}/s from one caller, {ACCEPTED / many_s:.0f}/s from "
        f"{CALLERS} threads of a process, {2 * ACCEPTED / two_s:.0f}/s from two new processes"
    )
    return _bound(f"accepted a second, {CALLERS} callers", ACCEPTED / many_s, 100, at_least=True)


def _submit_together(used: Context) -> float:
    def submit(number: int) -> None:
        with use_context(used):
            nothing.submit(number)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(submit, range(CALLERS)))
        return _seconds(lambda: list(pool.map(submit, range(ACCEPTED))))


def _submit_many(url: str) -> None:
    with use_context(Context(open_store(url), url, actor="bench-two")):
        for each in range(ACCEPTED):
            nothing.submit(each)


def _gateway(url: str) -> bool:
    """Benchmark a no-op through the gateway against a bare ASGI application, in turns."""
    token = Access(open_store(url), actor="bench").create_token("bench", "operator")
    environment = os.environ | {
        "TOQUE_STORE": url,
        "TOQUE_PROJECT": "toque.load.benchmarks.platform.functions",
    }
    with (
        _served("toque.ray_apps.gateway.deployment:build", "--factory", environment=environment) as gateway,
        _served("toque.load.benchmarks.platform.functions:floor", environment=environment) as bare,
    ):
        _ask(gateway, token)  # imports the functions
        turns = [
            (_seconds(lambda: _ask(bare, token)), _seconds(lambda: _ask(gateway, token)))
            for _ in range(ROUNDS)
        ]
    median_ms = [float(np.median([turn[column] for turn in turns[20:]])) * 1e3 for column in (0, 1)]
    print(f"no-op by HTTP: bare ASGI {median_ms[0]:.2f} ms, gateway {median_ms[1]:.2f} ms at the median")
    return _bound("ms that the gateway adds", median_ms[1] - median_ms[0], 1.0)


async def floor(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a bare ASGI application that echoes the JSON."""
    if scope["type"] != "http":
        return
    body = json.loads((await receive())["body"])
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(nothing(**body)).encode()})


@contextmanager
def _served(*application: str, environment: Mapping[str, str]) -> Iterator[HTTPConnection]:
    """Serve and connect to an ASGI application that uvicorn serves in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "off")
    process = subprocess.Popen([sys.executable, "-m", "uvicorn", *application, *options], env=environment)
    connection = HTTPConnection("127.0.0.1", port)
    try:
        while True:
            with suppress(ConnectionRefusedError):
                connection.connect()
                break
            time.sleep(0.05)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait()


def _ask(connection: HTTPConnection, token: str) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request("POST", "/functions/nothing", b'{"n": 1}', headers)
    response = connection.getresponse()
    answer = response.read()
    if (response.status, answer) != (200, b"1"):
        raise RuntimeError(f"got {response.status} {answer!r}")


def _requests(used: Context) -> bool:
    """Count the store requests that each further invocation adds beyond polling."""
    store: Any = CountingStore(open_store(f"{used.store_url}-counted"))
    counted = Context(store, store.url, actor="bench")
    ledger = Ledger(store, actor="bench")
    executor = Executor(counted, ledger)
    _drain(executor, lambda: ledger.submit(nothing, {"n": 0}))
    store.requests.clear()
    for each in range(20):
        ledger.submit(nothing, {"n": each})
    accept = sum(store.requests.values()) / 20
    store.requests.clear()
    executor.poll()
    polled = (
        sum(store.requests.values()) - 2
    )  # the index and the queue's end are read whether or not there is work
    finish = polled / 20 + 2  # the worker, in its own process, writes its claim and its result
    print(f"store requests: {accept:.1f} to accept, {finish:.1f} to finish (note, claim, result)")
    _drain(executor, lambda: None)
    return _bound("requests to accept", accept, 3) and _bound("requests to finish", finish, 3)


def _durable(used: Context, where: str) -> None:
    ledger, executor = ledger_of(used), executor_of(used)
    _drain(executor, lambda: None)
    one = [_seconds(lambda: _drain(executor, lambda: ledger.submit(nothing, {"n": 1}))) for _ in range(12)]
    many_s = _seconds(
        lambda: _drain(executor, lambda: [ledger.submit(nothing, {"n": each}) for each in range(100)])
    )
    timing = Timing(*map(float, np.quantile(one[2:], [0.2, 0.5, 0.8])))
    print(f"durable, {where}: one, submit to recorded result {timing}; a hundred {100 / many_s:.0f}/s")


def _starts(used: Context, where: str) -> None:
    """Benchmark the time from submit to recorded result, with a cold and with a warm worker."""
    executor = executor_of(used)
    ledger = ledger_of(used)
    cold_s = _seconds(lambda: _drain(executor, lambda: ledger.submit(nothing, {"n": 0})))
    warm_s = []
    for each in range(STARTS):
        while not executor.warm_workers(at_hand):
            executor.poll()
            time.sleep(0.001)
        warm_s.append(_seconds(lambda: _drain(executor, lambda: ledger.submit(at_hand, {"n": each}))))  # noqa: B023
    executor.close()
    timing = Timing(*map(float, np.quantile(warm_s, [0.2, 0.5, 0.8])))
    ratio = cold_s / float(np.median(warm_s))
    print(f"start, {where}: cold {cold_s * 1e3:.0f} ms, warm {timing}, cold/warm {ratio:.1f}x")


def _drain(executor: Executor, submit: Callable[[], object]) -> None:
    submit()
    while executor.poll():
        time.sleep(0.001)


def _compare(what: str, turns: list[tuple[float, float]], *, bound: float) -> bool:
    for name, column in (("bare Ray", 0), ("ours", 1)):
        print(
            f"{what}, {name:8}: {Timing(*map(float, np.quantile([turn[column] for turn in turns], [0.2, 0.5, 0.8])))}"
        )
    medians = [float(np.median([turn[column] for turn in turns])) for column in (0, 1)]
    return _bound(f"{what}: ratio of medians", medians[1] / medians[0], bound)


def _bound(what: str, value: float, bound: float, *, at_least: bool = False) -> bool:
    held = value >= bound if at_least else value <= bound
    print(
        f"{'held  ' if held else 'BROKEN'} {value:8.2f} {'>=' if at_least else '<='} {bound:g}  {what}",
        flush=True,
    )
    return held


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
