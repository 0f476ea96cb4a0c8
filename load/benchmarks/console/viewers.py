"""Benchmark of the console's viewers: p99 of a served model while people follow live pages, and without them.

python -m toque.load.benchmarks.console.viewers [--rounds 3] [--seconds 30] [--rate 50] [--viewers 200]

A platform of its own, in a temporary folder and on free ports, serves a small MLP as in `toque.load.benchmarks.platform.counter`; one row is sent about
`rate` times a second. Windows alone and windows with viewers take turns. A viewer is a page that is open: it holds the stream of its
topics and gets the page's content whenever that has changed, or asks for the page if it is told to, as the console's script does. Of every four, one follows the models,
one the model, one its traffic with rates and latencies, one the invocations; each two seconds an alias of the model and an invocation
give all of them something to show. The viewers are a process of the lowest priority, as they would be on machines of their own.

The exit code is 1 if the p99 with viewers is more than 1.1 times the one alone; 2 if nothing was measured: the platform did not start,
a request failed, or a viewer saw no change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from toque.load.benchmarks.platform.counter import (
    MODEL,
    WARM_S,
    NotPossible,
    Platform,
    PooledLatencies,
    Window,
    started,
    tell,
    watched,
)
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import BenchmarkModel, register
from toque.load.benchmarks.serving.throughput import json_body
from toque.load.benchmarks.timing import print_machine
from toque.load.scenarios.sending.open_loop import OpenLoop, ask_steadily, at_once

MOST = 1.1  # times the p99 alone
CHANGE_S, RETRY_S = 2.0, 2.0
GATEWAY = b"ray::ServeReplica:gateway"  # how Ray names its process
PAGES = (
    ("/ui/models", ("models/*",)),
    (f"/ui/models/{MODEL}", (f"models/{MODEL}",)),
    (f"/ui/traffic/{MODEL}", (f"models/{MODEL}", f"figures/{MODEL}")),
    ("/ui/invocations", ("invocations/*",)),
)


@dataclass(slots=True)
class Seen:
    """What the viewers saw in a window: contents that they got or asked for, and the least that one of them did."""

    pages: int = 0
    least: int = 0


def main() -> None:
    """Start a platform, measure it alone and with viewers, print both; or be the viewers, as `--as-viewers` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="of each window")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--as-viewers", help=argparse.SUPPRESS)  # address; the token is read from stdin
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    if given.as_viewers:
        os.nice(19)
        asyncio.run(_view(given.as_viewers, sys.stdin.readline().strip(), given.viewers))
        return
    print_machine("ray", "torch")
    try:
        with tempfile.TemporaryDirectory(prefix="viewers-") as folder:
            sys.exit(_measured(Path(folder).resolve(), given))
    except (NotPossible, httpx.HTTPError, OSError) as error:
        print(f"viewers: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("viewers: interrupted; the platform has been ended")


def _measured(folder: Path, given: argparse.Namespace) -> int:
    """Run the measurement on a new platform; returns 1 if the bound is passed. Raises: NotPossible, httpx.HTTPError, OSError."""
    store_url = (folder / "store").as_uri()
    token = register(store_url, folder / "artifacts", {MODEL: BenchmarkModel(small_mlp())})
    alone, beside = list[Window](), list[Window]()
    with started(folder / "home", store_url) as platform:

        def ask(seconds: float = given.seconds) -> OpenLoop:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            url = f"{platform.client.base_url}/v2/models/{MODEL}/infer"
            with at_once():
                return ask_steadily(
                    url, headers, json_body(), rate=given.rate, seconds=seconds, connections=16
                )

        ask(WARM_S)
        for number in range(given.rounds):
            with _changes(platform):
                alone.append(watched(ask, platform))
                tell(f"{number} alone", alone[-1])
                with _viewers(platform, given.viewers) as seen:
                    beside.append(watched(ask, platform))
                tell(f"{number} with viewers, {seen.pages} pages", beside[-1])
        print(f"the gateway runs at niceness {sorted(platform.niceness(GATEWAY).values())}")
    return _verdict(alone, beside, given.viewers)


def _verdict(alone: list[Window], beside: list[Window], viewers: int) -> int:
    """Print both and their ratio; returns 1 if the bound is passed. Raises: NotPossible."""
    before, after = PooledLatencies.of(alone), PooledLatencies.of(beside)
    print(f"alone: {before}\nwith {viewers} viewers: {after}")
    print(f"p99 with viewers {after.p99 / before.p99:.2f} x alone (at most {MOST:g})")
    return int(after.p99 > MOST * before.p99)


@contextlib.contextmanager
def _changes(platform: Platform) -> Iterator[None]:
    """Give the model another alias, and queue an invocation, every two seconds, with viewers and without."""
    ended = threading.Event()

    def change() -> None:
        while not ended.wait(CHANGE_S):
            alias = {"version": 1, "reason": "seen"}  # each page that lists the model shows it
            platform.client.put(
                f"/models/{MODEL}/aliases/seen-{time.time_ns()}", json=alias
            ).raise_for_status()
            queued = {"Prefer": "respond-async"}
            platform.client.post("/functions/list_rollouts", json={}, headers=queued).raise_for_status()

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _viewers(platform: Platform, viewers: int) -> Iterator[Seen]:
    """Open so many live pages in another process; gives what they saw, once it ends. Raises: NotPossible."""
    seen = Seen()
    address = str(platform.client.base_url)
    command = [
        sys.executable,
        "-m",
        "toque.load.benchmarks.console.viewers",
        "--as-viewers",
        address,
        "--viewers",
        str(viewers),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None  # noqa: S101 - a pipe, as asked
    assert process.stdout is not None  # noqa: S101 - as above
    try:
        process.stdin.write(platform.client.headers["Authorization"].removeprefix("Bearer ") + "\n")
        process.stdin.flush()
        if not process.stdout.readline().startswith("open"):
            raise NotPossible("the pages did not open")
        yield seen
        process.send_signal(signal.SIGINT)
        told = json.loads(process.stdout.readline() or "{}")
        seen.pages, seen.least = told.get("pages", 0), told.get("least", 0)
        if not seen.least:
            raise NotPossible("a viewer saw no change: raise --seconds")
    finally:
        process.kill()
        process.wait()


async def _view(address: str, token: str, viewers: int) -> None:
    """Follow pages until interrupted; prints "open" when all are, and at the end how many contents came."""
    asked = [0] * viewers
    opened = asyncio.Semaphore(0)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    limits = httpx.Limits(max_connections=2 * viewers, max_keepalive_connections=2 * viewers)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as http:

        def saw(number: int) -> Callable[[], None]:
            def add() -> None:
                asked[number] += 1

            return add

        tasks = [
            asyncio.create_task(_follow(http, PAGES[number % len(PAGES)], opened.release, saw(number)))
            for number in range(viewers)
        ]
        for _ in range(viewers):
            await opened.acquire()
        print("open", flush=True)
        begun = list(asked)
        await stop.wait()
        seen = [now - before for now, before in zip(asked, begun, strict=True)]
        print(json.dumps({"pages": sum(seen), "least": min(seen)}), flush=True)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(
    http: httpx.AsyncClient,
    what: tuple[str, tuple[str, ...]],
    opened: Callable[[], None],
    saw: Callable[[], None],
) -> None:
    """Be one open page: show it, hold the stream of its topics, and show it anew when that brings its content, or tells of a change."""
    page, topics = what
    (await http.get(page)).raise_for_status()
    first, last_id = True, ""
    while True:
        known = {"Last-Event-ID": last_id} if last_id else {}
        async with http.stream(
            "GET", "/ui/events", params={"topic": list(topics), "address": page}, headers=known
        ) as stream:
            if stream.status_code != httpx.codes.OK:
                raise NotPossible(f"/ui/events answered {stream.status_code}")
            async for line in stream.aiter_lines():
                if first:
                    first = False
                    opened()
                if line.startswith("id: "):
                    last_id = line.removeprefix("id: ")
                if line == "event: changed":
                    (await http.get(page)).raise_for_status()
                if line in {"event: changed", "event: page", "event: figures"}:
                    saw()
        await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    main()
