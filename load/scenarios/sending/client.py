"""Process of the native client: sends its share of a plan and writes what it counts, a line of JSON every half second.

`python -m toque.load.scenarios.run` starts it: `python -m toque.load.scenarios.sending.client PLAN INDEX COUNTS`. It says `ready` when it is connected, and
begins at the moment (seconds since the epoch) that it reads then; a further line ends it early.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from toque.load.scenarios.plan import Plan, check_of
from toque.load.scenarios.sending.connections import Address, precise_loop, send_arrivals
from toque.load.scenarios.windows import Tally

_EVERY_S = 0.5


def main(arguments: list[str]) -> int:
    """Send the share of one process."""
    plan_file, index, counts = arguments
    plan = Plan.model_validate_json(Path(plan_file).read_text())
    gc.collect()
    gc.freeze()  # what is imported here takes 80 ms to look through, in which nobody would be asked
    log = Path(f"{counts}.requests") if plan.log_requests else Path(os.devnull)
    with (
        Path(counts).open("w", encoding="utf-8") as sink,
        log.open("w", encoding="utf-8") as requests,
        asyncio.Runner(loop_factory=precise_loop) as runner,
    ):
        runner.run(_run(plan, int(index), sink, requests if plan.log_requests else None))
    return 0


class _LoggedTally(Tally):
    """Counts that write a line for each request, too: when it was due, sent and ended (seconds since the epoch), and who answered."""

    def __init__(self, begin: float, sink: IO[str] | None) -> None:
        super().__init__()
        self._begin, self._sink = begin, sink
        self._check, self._version = check_of(), None

    def check(self, head: bytes, body: bytes) -> str | None:
        """Say what is wrong with an answer, whose end is counted next."""
        problem = self._check(head, body)
        if self._sink and problem is None:
            self._version = json.loads(body).get("model_version")
        return problem

    def ended(self, due_s: float, sent_s: float, end_s: float, problem: str | None) -> None:
        super().ended(due_s, sent_s, end_s, problem)
        if self._sink:
            times = {"due": self._begin + due_s, "sent": self._begin + sent_s, "ended": self._begin + end_s}
            self._sink.write(json.dumps(times | {"version": self._version, "problem": problem}) + "\n")
            self._version = None


async def _run(plan: Plan, index: int, counts: IO[str], log: IO[str] | None) -> None:
    loop, orders, stop = asyncio.get_running_loop(), asyncio.Queue[bytes](), asyncio.Event()
    loop.add_reader(sys.stdin, lambda: orders.put_nowait(os.read(sys.stdin.fileno(), 1 << 10)))
    print("ready", flush=True)
    begin = float(await orders.get())
    stopping = asyncio.create_task(_stop_by(orders, stop))
    tally = _LoggedTally(begin, log)
    writing = asyncio.create_task(_write(tally, counts, log))
    scenario = plan.scenario
    await send_arrivals(
        Address.of(plan.url),
        _requests(plan, index),
        tally,
        connections=scenario.connections,
        begin=loop.time() + begin - time.time(),
        patience_s=scenario.patience_s,
        timeout_s=scenario.timeout_s,
        check=tally.check,
        stop=stop,
    )
    loop.remove_reader(sys.stdin)
    writing.cancel()
    stopping.cancel()
    _line(counts, tally.changes() | {"done": True})


async def _stop_by(orders: asyncio.Queue[bytes], stop: asyncio.Event) -> None:
    await orders.get()  # whatever it says, or the end of who started this
    stop.set()


def _requests(plan: Plan, index: int) -> Iterator[tuple[float, bytes]]:
    """Write each request whole, once for each body."""
    address, token = Address.of(plan.url), os.environ.get("TOQUE_TOKEN")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    written: dict[tuple[str, str], bytes] = {}
    for due_s, part, body in plan.requests(index):
        whole = written.get((part.path, body))
        if whole is None:
            whole = written[part.path, body] = address.request(body.encode(), headers, path=part.path)
        yield due_s, whole


async def _write(tally: Tally, counts: IO[str], log: IO[str] | None) -> None:
    while True:
        await asyncio.sleep(_EVERY_S)
        _line(counts, tally.changes())
        if log:
            log.flush()


def _line(counts: IO[str], document: dict[str, Any]) -> None:
    counts.write(json.dumps(document | {"cpu_s": time.process_time()}) + "\n")
    counts.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
