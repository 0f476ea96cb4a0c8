"""Benchmark of functions against bare Ray, in one run: bare Ray and ours take turns, so that what else the machine does hits both.

Bounds: `.remote` within 1.3x, a map of 1,000 within 1.2x, 100 durable invocations accepted a second on a folder from eight callers at a
time (one alone waits for the disk four times an invocation), at most 3 store requests to accept and 3 to finish, 1 ms that the gateway
adds to a no-op over a bare ASGI application. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import ray

from toque.functions import Context, use_context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import executor_of, ledger_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.load.benchmarks.harness import Timing, bound, main, say, seconds_of, temporary, timed_in_turns
from toque.load.benchmarks.platform.no_ops import at_hand, nothing
from toque.load.benchmarks.platform.registry import CountingStore
from toque.load.benchmarks.servers import asgi_server
from toque.registry import Access, open_store

ROUNDS, MAPS, ITEMS, STARTS = 280, 6, 1_000, 10
ACCEPTED, CALLERS = 300, 8
COUNTED = 20
_ROOM = "toque.load.benchmarks.platform"


def bare(n: int) -> int:
    """Return the argument, as an undeclared function."""
    return n


def run() -> None:
    """Run every case, without Ray and on it."""
    with temporary() as folder:
        url = f"file://{folder}/store"
        used = _context(url)
        _accepting(_context(f"{url}-accepting"))
        _requests(f"{url}-counted")
        _gateway(f"{url}-gateway", folder)
        _starts(_context(f"{url}-starts"), "local child process")
        _durable(used, "local child process")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        with use_context(replace(used, actor="bench-ray")):
            _beside_ray()
        _starts(_context(f"{url}-starts-ray"), "Ray worker")
        _durable(replace(used, actor="bench-ray"), "Ray task")
        ray.shutdown()


def _context(url: str) -> Context:
    return Context(open_store(url), url, actor="bench")


def _beside_ray() -> None:
    task, items = ray.remote(bare), list(range(ITEMS))
    first = [seconds_of(lambda: ray.get(task.remote(0))), seconds_of(lambda: nothing.remote(0).result())]
    say(f"first call: bare Ray {first[0] * 1e3:.0f} ms, .remote {first[1] * 1e3:.0f} ms")
    ones = {"bare Ray": lambda: ray.get(task.remote(1)), "ours": lambda: nothing.remote(1).result()}
    maps: dict[str, Callable[[], object]] = {
        "bare Ray": lambda: ray.get([task.remote(item) for item in items]),
        "ours": lambda: nothing.map(items),
    }
    _compare(".remote, one at a time", ones, ROUNDS, warm_ups=20, most=1.3)
    _compare(f".map over {ITEMS}", maps, MAPS, warm_ups=1, most=1.2)


def _compare(
    what: str, calls: Mapping[str, Callable[[], object]], rounds: int, *, warm_ups: int, most: float
) -> None:
    timings = timed_in_turns(calls, rounds, warm_ups=warm_ups)
    for name, timing in timings.items():
        say(f"{timing}  {what}, {name}")
    base, ours = timings.values()
    bound(f"{what}: ratio of medians", ours.p50_s / base.p50_s, most=most)


def _accepting(used: Context) -> None:
    with use_context(used):
        nothing.submit(0)
        one_s = seconds_of(lambda: [nothing.submit(number) for number in range(ACCEPTED)])
    with ThreadPoolExecutor(CALLERS) as threads:
        submit = partial(_submit, used)
        list(threads.map(submit, range(CALLERS)))
        many_s = seconds_of(lambda: list(threads.map(submit, range(ACCEPTED))))
    say(f"accepted durable invocations: {ACCEPTED / one_s:.0f}/s from one caller")
    bound(f"accepted a second, {CALLERS} callers", ACCEPTED / many_s, least=100)


def _submit(used: Context, number: int) -> None:
    with use_context(used):
        nothing.submit(number)


def _gateway(url: str, folder: Path) -> None:
    """Benchmark a no-op through the gateway against a bare ASGI application, in turns."""
    token = Access(open_store(url), actor="bench").create_token("bench", "operator")
    own = {"TOQUE_STORE": url, "TOQUE_PROJECT": f"{_ROOM}.no_ops"}
    build = "toque.ray_apps.gateway.deployment:build"
    serve = partial(asgi_server, environment=own)
    with (
        serve(build, folder, "--factory", "--lifespan", "off") as (gateway, _),
        serve(f"{_ROOM}.functions:floor", folder, "--lifespan", "off") as (bare_url, _),
        closing(HTTPConnection(bare_url.removeprefix("http://"))) as bare_door,
        closing(HTTPConnection(gateway.removeprefix("http://"))) as our_door,
    ):
        calls = {"bare ASGI": partial(_ask, bare_door, token), "gateway": partial(_ask, our_door, token)}
        plain, ours = timed_in_turns(calls, ROUNDS, warm_ups=20).values()
    say(f"no-op by HTTP: bare ASGI {plain}, gateway {ours}")
    bound("ms that the gateway adds", (ours.p50_s - plain.p50_s) * 1e3, most=1.0)


async def floor(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a bare ASGI application that echoes the JSON."""
    if scope["type"] == "http":
        body = json.loads((await receive())["body"])
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(nothing(**body)).encode()})


def _ask(connection: HTTPConnection, token: str) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request("POST", "/functions/nothing", b'{"n": 1}', headers)
    response = connection.getresponse()
    answer = response.read()
    if (response.status, answer) != (200, b"1"):
        raise RuntimeError(f"got {response.status} {answer!r}")


def _requests(url: str) -> None:
    """Count the store requests that each further invocation adds beyond polling."""
    store: Any = CountingStore(open_store(url))
    ledger = Ledger(store, actor="bench")
    executor = Executor(Context(store, store.url, actor="bench"), ledger)
    _drain(executor, lambda: ledger.submit(nothing, {"n": 0}))
    accept = store.count(lambda: [ledger.submit(nothing, {"n": number}) for number in range(COUNTED)]).total()
    # the index and the queue's end are read whatever there is
    polled = store.count(executor.poll).total() - 2
    _drain(executor, lambda: None)
    bound("store requests to accept", accept / COUNTED, most=3)
    # the worker, in its own process, writes its claim and its result
    bound("store requests to finish: note, claim, result", polled / COUNTED + 2, most=3)


def _durable(used: Context, where: str) -> None:
    ledger, executor = ledger_of(used), executor_of(used)
    _drain(executor, lambda: None)
    submit = partial(ledger.submit, nothing, {"n": 1})
    one = Timing.of([seconds_of(lambda: _drain(executor, submit)) for _ in range(12)][2:])
    many_s = seconds_of(lambda: _drain(executor, lambda: [submit() for _ in range(100)]))
    say(f"durable, {where}: one, submit to recorded result {one}; a hundred {100 / many_s:.0f}/s")


def _starts(used: Context, where: str) -> None:
    """Benchmark the time from submit to recorded result, with a cold and with a warm worker."""
    executor, ledger, warm_s = executor_of(used), ledger_of(used), []
    cold_s = seconds_of(lambda: _drain(executor, partial(ledger.submit, nothing, {"n": 0})))
    for number in range(STARTS):
        while not executor.warm_workers(at_hand):
            executor.poll()
            time.sleep(0.001)
        warm_s.append(seconds_of(partial(_drain, executor, partial(ledger.submit, at_hand, {"n": number}))))
    executor.close()
    say(f"start, {where}: cold {cold_s * 1e3:.0f} ms, warm {Timing.of(warm_s)}")


def _drain(executor: Executor, submit: Callable[[], object]) -> None:
    submit()
    while executor.poll():
        time.sleep(0.001)


if __name__ == "__main__":
    main(run, "ray", "pydantic")
