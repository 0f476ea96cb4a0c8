"""Short runs on this machine that give the model its costs, and one that the model did not see, to check it by.

They count processor time, so that a busy machine gives about the figures of an idle one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import redis

from toque.functions.prediction_log import encode_prediction
from toque.functions.prediction_log.frames import Frame, encode_frame
from toque.functions.prediction_log.writing.drain import add_records
from toque.load.processes import redis_cpu_s
from toque.registry import ObjectStore

_COLUMNS = 20


def record(number: int, model: int) -> bytes:
    """Encode a prediction of 20 numbers, as a replica does."""
    return encode_prediction(
        id=f"request-{number}", model=f"m{model}", version=1, arm="champion", shadow=False, unit=f"u{number}",
        at_us=1_356_998_400_000_000 + number, latency_ms=1.5, rows=1, numeric=np.full((1, _COLUMNS), 0.5, np.float32),
        categorical=None, outputs=np.array([[0.25]], np.float32), missing=None, entities=[{"user": number}],
    )  # fmt: skip


def record_bytes() -> float:
    """Size of a logged prediction in Redis."""
    return float(np.mean([len(encode_frame(number, record(number, 0))) for number in range(100)]))


def drain_seconds(store: ObjectStore, *, rows: int, models: int, rounds: int = 2) -> float:
    """Processor time of a drain of `rows` predictions of `models` models, the median of some rounds, tables made before."""
    taken = []
    for batch in range(rounds + 1):
        frames = [Frame(batch * rows + i + 1, record(i, i % models), 0) for i in range(rows)]
        began = time.process_time()
        moved = add_records(store, "predictions", {"writer": frames})
        taken.append(time.process_time() - began)
        if moved.predictions != rows:
            raise RuntimeError(f"the drain moved {moved.predictions} of {rows} rows")
    return float(np.median(taken[1:]))


def drain_costs(store_of: Callable[[str], ObjectStore]) -> tuple[float, float]:
    """Processor time of a row and of a commit in a drain, from two runs. store_of: opens an empty store by a name."""
    few, many = 1_000, 11_000
    small = drain_seconds(store_of("small"), rows=few, models=4)
    large = drain_seconds(store_of("large"), rows=many, models=4)
    row_s = max(0.0, (large - small) / (many - few))
    return row_s, max(0.0, (small - few * row_s) / 4)


def redis_costs(url: str, *, commands: int = 3_000, chunks: int = 60) -> tuple[float, float]:
    """Processor time of the server for a small command of its own, and for a byte that comes in and goes out again."""
    client = redis.Redis.from_url(url)
    client.set("small", b"x" * 100)
    before = redis_cpu_s(client)
    for _ in range(commands):
        client.get("small")
    command_s = (redis_cpu_s(client) - before) / commands
    chunk = b"x" * 1_000_000
    before = redis_cpu_s(client)
    for _ in range(chunks):
        client.xadd("chunks", {"frames": chunk})
        client.xrange("chunks", count=1)
        client.delete("chunks")
    byte_s = (redis_cpu_s(client) - before) / (2 * chunks * len(chunk))
    client.close()
    return command_s, byte_s
