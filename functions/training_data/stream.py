"""Stream of batches for one of several workers: read, decoded and collected ahead by threads, in an order that all share.

Worker r of N takes every N-th sample of each global batch, beginning with the r-th. So all workers together see the samples of
the source's sequence, each once, whatever their number; and the position, a count of samples of all workers, says where to go on
with any number of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from toque.functions.training_data.formats import Values
from toque.functions.training_data.order import Numbers
from toque.functions.training_data.source import SampleSource

Decode = Callable[[dict[str, Values]], dict[str, Values]]
"""Turns the fields of several samples, as they are stored, into those of a batch; runs in threads."""
Last = Literal["keep", "drop"]
_PIECES = 4  # of a batch for each thread, so that they end about together


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one worker's step. position: of the stream behind this batch, counted over all workers; numbers: of the samples."""

    position: int
    numbers: Numbers
    columns: dict[str, Values]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples of a global batch a worker takes: every `workers`-th, beginning with the `rank`-th."""

    rank: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.workers:
            raise ValueError(f"rank={self.rank} must be from 0 to workers={self.workers} (exclusive)")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a stream reads its source. batch_rows: of all workers; threads: that read and decode; ahead: batches that are read ahead.

    last: an epoch's last samples, too few for a batch, are a shorter batch ("keep") or left out by all workers ("drop").
    fetch_rows: samples ahead of the position whose shards are fetched.
    """

    batch_rows: int
    threads: int = 2
    ahead: int = 4
    last: Last = "keep"
    fetch_rows: int = 65_536

    def __post_init__(self) -> None:
        for name in ("batch_rows", "threads", "ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of a stream must be 1 or more")


class SampleStream:
    """Iterator over one worker's batches from a position on, until `stop`, or without an end.

    position, stop: counts of samples of all workers. waited_s: time in which the caller waited for a batch.
    """

    def __init__(
        self,
        source: SampleSource,
        reading: Reading,
        *,
        share: Share = Share(),
        position: int = 0,
        stop: int | None = None,
        decode: Decode | None = None,
    ) -> None:
        if reading.last == "drop" and reading.batch_rows > source.epoch_rows:
            raise ValueError(
                f"batch_rows={reading.batch_rows} with last='drop' leaves nothing of an epoch of {source.epoch_rows} samples"
            )
        self.waited_s = 0.0
        self.position = position
        self._source, self._reading, self._share = source, reading, share
        self._stop, self._decode = stop, decode
        self._next, self._fetched = position, position
        self._waiting: deque[tuple[int, Numbers, list[Future[dict[str, Values]]]]] = deque()
        self._pool = ThreadPoolExecutor(reading.threads, thread_name_prefix="toque-samples")
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="toque-fetch")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._waiting) < self._reading.ahead and self._begin_next():
            pass
        if not self._waiting:
            raise StopIteration
        position, numbers, parts = self._waiting.popleft()
        began = time.perf_counter()
        columns = _joined([part.result() for part in parts])
        self.waited_s += time.perf_counter() - began
        self.position = position
        return Batch(position, numbers, columns)

    def close(self) -> None:
        """End the threads; batches read ahead are given up. The source stays open."""
        self._pool.shutdown(cancel_futures=True)
        self._fetcher.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_next(self) -> bool:
        """Begin to read the next batch; False at the end."""
        start, stop = next_batch(self._next, self._source.epoch_rows, self._reading)
        if self._stop is not None:
            stop = min(stop, self._stop)
        if start >= stop:
            return False
        self._next = stop
        if stop + self._reading.fetch_rows // 2 > self._fetched:
            begin, self._fetched = self._fetched, max(self._fetched, stop) + self._reading.fetch_rows
            self._fetcher.submit(self._fetch, begin, self._fetched)
        numbers = self._source.stretch(start, stop)[self._share.rank :: self._share.workers]
        pieces = min(len(numbers), self._reading.threads * _PIECES) if self._decode else 1
        parts = [self._pool.submit(self._read, part) for part in np.array_split(numbers, max(pieces, 1))]
        self._waiting.append((stop, numbers, parts))
        return True

    def _fetch(self, start: int, stop: int) -> None:
        self._source.fetch(self._source.stretch(start, stop if self._stop is None else min(stop, self._stop)))

    def _read(self, numbers: Numbers) -> dict[str, Values]:
        columns = self._source.take(numbers)
        return columns if self._decode is None else self._decode(columns)


def next_batch(position: int, epoch_rows: int, reading: Reading) -> tuple[int, int]:
    """Places of the batch that comes at a position; batches end with their epoch."""
    epoch, place = divmod(position, epoch_rows)
    stop = place + reading.batch_rows
    if stop <= epoch_rows:
        return position, epoch * epoch_rows + stop
    if reading.last == "keep":
        return position, (epoch + 1) * epoch_rows
    begin = (epoch + 1) * epoch_rows
    return begin, begin + reading.batch_rows


def _joined(parts: list[dict[str, Any]]) -> dict[str, Values]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
