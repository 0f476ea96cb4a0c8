"""Benchmark of the console's viewers: p99 of a served model while people follow live pages, and without them.

A platform of its own serves a small MLP, which is asked about `--rate` times a second. Windows alone and windows with viewers take turns. A
viewer is a page that is open: it holds the stream of its topics and gets the page's content whenever that has changed, or asks for the
page if it is told to, as the console's script does. Of every four, one follows the models, one the model, one its traffic with rates and
latencies, one the invocations; each two seconds an alias of the model and an invocation give all of them something to show. The viewers are a
process of the lowest priority, as they would be on machines of their own.

The exit code is 1 if the p99 with viewers is more than 1.1 times the one alone; 2 if nothing was measured: the platform did not start,
a request failed, or a viewer saw no change.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Annotated

import httpx

from toque.load.benchmarks.harness import NotPossible, bound, main, say, temporary
from toque.load.benchmarks.platform.windows import MODEL, PROJECT, alone_and_beside, p99_ratio, register_model
from toque.load.benchmarks.servers import Platform, started

MOST = 1.1  # times the p99 alone
CHANGE_S, RETRY_S, OPEN_S = 2.0, 2.0, 180.0
PAGES = (
    ("/ui/models", ("models/*",)),
    (f"/ui/models/{MODEL}", (f"models/{MODEL}",)),
    (f"/ui/traffic/{MODEL}", (f"models/{MODEL}", f"figures/{MODEL}")),
    ("/ui/invocations", ("invocations/*",)),
)


def run(
    *, rounds: int = 3, seconds: Annotated[float, "of each window"] = 30, rate: float = 50, viewers: int = 200
) -> None:
    """Start a platform, and measure it alone and with viewers."""
    with temporary() as folder:
        store_url, token = register_model(folder)
        with started(folder / "home", store_url, project=PROJECT) as platform, _changes(platform):
            following = partial(_viewers, platform, viewers)
            windows = alone_and_beside(platform, token, following, rounds=rounds, seconds=seconds, rate=rate)
    bound(f"times the p99 alone, with {viewers} viewers", p99_ratio(*windows), most=MOST)


@contextmanager
def _changes(platform: Platform) -> Iterator[None]:
    """Give the model another alias, and queue an invocation, every two seconds, with viewers and without."""
    ended = threading.Event()

    def change() -> None:
        while not ended.wait(CHANGE_S):
            alias = {"version": 1, "reason": "seen"}  # each page that lists the model shows it
            path = f"/models/{MODEL}/aliases/seen-{time.time_ns()}"
            platform.client.put(path, json=alias).raise_for_status()
            platform.submit("list_rollouts")

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _viewers(platform: Platform, viewers: int) -> Iterator[None]:
    """Open so many live pages in another process, and print what they saw. Raises: NotPossible."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=_follow_all, args=(platform.url, platform.token, viewers, theirs), daemon=True
    )
    process.start()
    try:
        if not ours.poll(OPEN_S) or ours.recv() != "open":
            raise NotPossible("the pages did not open")
        yield
        ours.send("stop")
        seen = json.loads(ours.recv())
        say(f"{sum(seen)} contents came, {min(seen)} at least to a viewer")
        if not min(seen):
            raise NotPossible("a viewer saw no change: raise --seconds")
    finally:
        process.kill()
        process.join()


def _follow_all(url: str, token: str, viewers: int, told: Connection) -> None:
    os.nice(19)
    asyncio.run(_view(url, token, viewers, told))


async def _view(url: str, token: str, viewers: int, told: Connection) -> None:
    """Follow pages until the other side says so; tells when all are open, and at the end how many contents came to each."""
    contents, opened = Counter[int](), asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=2 * viewers, max_keepalive_connections=2 * viewers)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as http:
        tasks = [asyncio.create_task(_follow(http, number, opened, contents)) for number in range(viewers)]
        for _ in range(viewers):
            await opened.acquire()
        contents.clear()
        told.send("open")
        await asyncio.to_thread(told.recv)
        told.send(json.dumps([contents[number] for number in range(viewers)]))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(
    http: httpx.AsyncClient, number: int, opened: asyncio.Semaphore, contents: Counter[int]
) -> None:
    """Be one open page: show it, hold the stream of its topics, and show it anew when that brings its content, or tells of a change."""
    page, topics = PAGES[number % len(PAGES)]
    (await http.get(page)).raise_for_status()
    first, last_id = True, ""
    while True:
        last = {"Last-Event-ID": last_id} if last_id else {}
        async with http.stream(
            "GET", "/ui/events", params={"topic": list(topics), "address": page}, headers=last
        ) as stream:
            stream.raise_for_status()
            async for text in stream.aiter_lines():
                if first:
                    first = False
                    opened.release()
                if text.startswith("id: "):
                    last_id = text.removeprefix("id: ")
                if text == "event: changed":
                    (await http.get(page)).raise_for_status()
                contents[number] += text in {"event: changed", "event: page", "event: figures"}
        await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    main(run, "ray", "torch")
