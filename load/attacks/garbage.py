"""Garbage without a token on every port, for minutes, beside one honest caller.

Slow requests, huge ones, broken ones, and many connections. Measured: the memory and open files of the processes that
listen, before and at the worst moment, and the honest caller's p99 in the same two phases.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from toque.load.attacks.target import Finding, Target
from toque.load.benchmarks.harness import MIB, greatest
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.sending.processes import put_load
from toque.load.scenarios.target import Target as Asked
from toque.load.scenarios.windows import median_p99_ms

MAX_GROWTH_MIB: Final = 100
MAX_RATIO: Final = 2.0
MAX_FILES: Final = 8_192
HONEST_RATE: Final = 20.0
BEFORE_S: Final = 20.0
CONNECTIONS: Final = 64
PAUSE_S: Final = 0.05
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def listeners(target: Target) -> list[psutil.Process]:
    """Find the processes that listen on this machine for HTTP and gRPC, and the replicas and proxies that their parents started.

    Raises: RuntimeError if none can be seen, as on another machine.
    """
    addresses = [urlsplit(target.url).port or 80]
    if target.grpc_address:
        addresses.append(int(target.grpc_address.rpartition(":")[2]))
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    pids = {one.pid for one in listening if one.laddr.port in addresses and one.pid}
    if not pids:
        raise RuntimeError(
            f"no process of this machine listens on {addresses}; run this where the platform runs"
        )
    found = {pid: psutil.Process(pid) for pid in pids}
    for process in list(found.values()):
        parent = process.parent()
        beside = [] if parent is None or parent.pid == 1 else parent.children(recursive=True)
        found |= {one.pid: one for one in beside if "ServeReplica" in one.name() or "Proxy" in one.name()}
    return list(found.values())


def held_by(processes: list[psutil.Process]) -> tuple[int, int]:
    """Bytes of memory that are the processes' own, and how many files they have open, where that can be told."""
    memory = files = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory += int(process.memory_full_info().uss)
            files += int(process.num_fds())
    return memory, files


async def throw(target: Target, seconds: float) -> int:
    """Throw garbage at both ports for so long; returns how many connections were opened."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # each write to what was closed is a line
    opened = 0
    ports = [(urlsplit(target.url).hostname or "127.0.0.1", urlsplit(target.url).port or 80, HTTP_GARBAGE)]
    if target.grpc_address:
        grpc_host, _, grpc_port = target.grpc_address.rpartition(":")
        ports.append((grpc_host, int(grpc_port), GRPC_GARBAGE))
    deadline = time.monotonic() + seconds

    async def worker(host: str, port: int, kinds: tuple[Garbage, ...], seed: int) -> None:
        nonlocal opened
        rng = random.Random(seed)  # garbage, no secret
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(min(30.0, max(0.1, deadline - time.monotonic()))):
                    streams = await asyncio.open_connection(host, port)
                    opened += 1
                    try:
                        await rng.choice(kinds)(streams, rng)
                    finally:
                        streams[1].close()
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for host, port, kinds in ports:
            for number in range(CONNECTIONS):
                group.create_task(worker(host, port, kinds, number))
    return opened


async def _trickle(streams: Opened, rng: random.Random, head: bytes, pieces: Iterable[bytes]) -> None:
    """Send a head, and then a piece about every half second."""
    streams[1].write(head)
    for piece in pieces:
        if streams[1].is_closing():
            return
        streams[1].write(piece)
        await streams[1].drain()
        await asyncio.sleep(rng.uniform(0.2, 1.0))


async def _send(streams: Opened, *parts: bytes, read: int = 1024) -> bytes:
    """Send some bytes, and read what comes back."""
    streams[1].writelines(parts)
    await streams[1].drain()
    return await streams[0].read(read)


async def _slow_header(streams: Opened, rng: random.Random) -> None:
    head, names = b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\n", range(60)
    await _trickle(streams, rng, head, [b"X-%d: a\r\n" % name for name in names])


async def _slow_body(streams: Opened, rng: random.Random) -> None:
    head = b"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    await _trickle(streams, rng, head, [b"["] * 60)


async def _huge_body(streams: Opened, _: random.Random) -> None:
    streams[1].write(b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
    for _number in range(16):
        streams[1].write(b"\x00" * (1 << 20))
        await streams[1].drain()


async def _huge_header(streams: Opened, _: random.Random) -> None:
    await _send(streams, b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * (4 << 20), b"\r\n\r\n")


async def _broken(streams: Opened, rng: random.Random) -> None:
    await _send(streams, rng.randbytes(rng.randrange(1, 65_536)))


async def _wrong_tokens(streams: Opened, rng: random.Random) -> None:
    for _ in range(50):
        token = f"tq_{rng.randrange(1 << 48):012x}_{'x' * 43}"
        request = f"GET /models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        if not await _send(streams, request.encode(), read=4_096):
            return


async def _idle(_: Opened, rng: random.Random) -> None:
    await asyncio.sleep(rng.uniform(1, 20))


async def _half_http2(streams: Opened, rng: random.Random) -> None:
    frames = [_PREFACE + _SETTINGS]
    for _ in range(rng.randrange(1, 300)):  # headers of streams that are never ended, in a broken encoding
        payload = rng.randbytes(rng.randrange(1, 200))
        stream = (rng.randrange(1, 1 << 30) | 1).to_bytes(4, "big")
        frames.append(len(payload).to_bytes(3, "big") + b"\x01\x04" + stream + payload)
    await _send(streams, *frames)


async def _pings(streams: Opened, _: random.Random) -> None:
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"\x00" * 8
    await _send(streams, _PREFACE + _SETTINGS, ping * 2_000, read=65_536)


Garbage = Callable[[Opened, random.Random], Coroutine[Any, Any, None]]
HTTP_GARBAGE: Final[tuple[Garbage, ...]] = (
    _slow_header, _slow_body, _huge_body, _huge_header, _broken, _wrong_tokens, _idle,
)  # fmt: skip
GRPC_GARBAGE: Final[tuple[Garbage, ...]] = (_half_http2, _pings, _broken, _idle)


def honest(target: Target, seconds: float) -> tuple[float, int]:
    """Ask the model as one honest caller for so long; returns p99 in ms of the median second, and how many failed."""
    shape = Steady(rate=HONEST_RATE, seconds=seconds)
    scenario = Scenario(shape=shape, connections=4, as_users=True, warm_up_s=0, patience_s=30, timeout_s=30)
    run = put_load(Asked(target.url, target.token, target.model or ""), "honest", scenario)
    return median_p99_ms(run.each_window()), run.measured().lost


def garbage(target: Target, minutes: float) -> Finding:
    """Throw garbage for `minutes` and tell what it cost. Raises: RuntimeError as `listeners`."""
    processes = listeners(target)
    before_ms, _ = honest(target, BEFORE_S)
    memory, files = held_by(processes)
    with (
        greatest(lambda: held_by(processes)[0], every_s=0.5) as most_memory,
        greatest(lambda: held_by(processes)[1], every_s=0.5) as most_files,
        ThreadPoolExecutor(1) as thread,
    ):
        throwing = thread.submit(lambda: asyncio.run(throw(target, 60 * minutes)))
        during_ms, failed = honest(target, max(1.0, 60 * minutes - 10))
        opened = throwing.result()
    growth_mib = (most_memory[0] - memory) / MIB
    bounded = growth_mib < MAX_GROWTH_MIB and during_ms < MAX_RATIO * before_ms
    return Finding(
        "garbage",
        bounded and most_files[0] < MAX_FILES and not failed,
        f"{minutes:g} min, {opened} connections: memory {memory / MIB:.0f} MiB and {growth_mib:+.0f}, "
        f"files {files} and {most_files[0]} at most, p99 of an honest caller {before_ms:.1f} and {during_ms:.1f} ms, "
        f"{failed} of its requests failed; {len(processes)} processes",
    )
