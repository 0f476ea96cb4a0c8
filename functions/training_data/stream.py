"""Stream of batches for one of several workers: read, decoded and collected ahead by threads, in an order of all.

Worker r of N takes every N-th sample of each global batch, beginning with the r-th. So all workers together see the samples of
the source's sequence, each once, whatever their number; and the position, a count of samples of all workers, says where to go on.
A source is one set or a mixture of several in given shares, an endless sequence cut into epochs. A mixture is cut into rounds: up
to the end of each, every set has had its share of the places, to one sample; within a round the sets come in an order that is
drawn. Pictures are decoded by Pillow, which leaves the interpreter free meanwhile.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from toque.functions.training_data.formats import SampleSetError, Values
from toque.functions.training_data.order import EpochOrder, Numbers, drawn
from toque.functions.training_data.rows import OpenSet, SampleRows, ShardCache

Decode = Callable[[dict[str, Values]], dict[str, Values]]
"""Turns the fields of several samples, as they are stored, into those of a batch; runs in threads."""
Last = Literal["keep", "drop"]
_PIECES = 4  # of a batch for each thread, so that they end about together
_LEAST_PLACES = 4  # of the smallest set in a round, at least two, so that rounding never takes a place back
_ROUND = 1_024  # places of a round at least
_KEPT_EPOCHS = 2  # orders: of the epoch that is read, and of the one that is fetched ahead


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


class SampleSource(Protocol):
    """Endless sequence of samples, of which any stretch can be asked for: place N is the N-th sample since the start."""

    @property
    def epoch_rows(self) -> int:
        """Number of samples of an epoch."""

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch what these samples need; does not wait."""

    def close(self) -> None:
        """Let go of all that is open."""


class SetSource:
    """One set, epoch after epoch, each shuffled anew."""

    def __init__(self, opened: OpenSet, cache: ShardCache | None = None) -> None:
        self._rows = SampleRows(opened, cache)
        self._orders: dict[int, EpochOrder] = {}

    @property
    def epoch_rows(self) -> int:
        """Samples of an epoch: all of the set."""
        return len(self._rows)

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive)."""
        found = [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, place = divmod(start, self.epoch_rows)
            until = min(self.epoch_rows, place + stop - start)
            found.append(self._order(epoch).stretch(place, until))
            start += until - place
        return np.concatenate(found)

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""
        return self._rows.take(numbers)

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples; does not wait."""
        self._rows.fetch(numbers)

    def close(self) -> None:
        """Close all shards that are open."""
        self._rows.close()

    def _order(self, epoch: int) -> EpochOrder:
        order = self._orders.get(epoch)
        if order is None:
            order = self._rows.set.order(epoch)
            kept = dict(list(self._orders.items())[1 - _KEPT_EPOCHS :])
            self._orders = kept | {epoch: order}
        return order


class Mixture:
    """Several sets of the same fields in given shares; each goes through epochs of its own.

    sets, weights: of each set its share, in any unit; epoch_rows: by default as many as all sets have together.
    """

    def __init__(
        self,
        sets: Sequence[OpenSet],
        weights: Sequence[float],
        *,
        seed: int = 0,
        epoch_rows: int | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        if len(sets) != len(weights):
            raise SampleSetError(
                f"{len(sets)} sets with {len(weights)} weights: give one weight for each set"
            )
        different = {opened.index.columns for opened in sets}
        if len(different) > 1:
            raise SampleSetError(f"the sets of a mixture must have the same fields; got {sorted(different)}")
        self._shares = Shares(weights, seed=seed)
        self._sources = [SetSource(opened, cache) for opened in sets]
        self._starts = np.cumsum([0, *(source.epoch_rows for source in self._sources)])
        self._epoch_rows = epoch_rows or int(self._starts[-1])

    @property
    def epoch_rows(self) -> int:
        """Number of samples of an epoch."""
        return self._epoch_rows

    def stretch(self, start: int, stop: int) -> Numbers:
        """Numbers of the samples at the places `start` to `stop` (exclusive), counted through all sets."""
        sets, before = self._shares.stretch(start, stop)
        numbers = np.empty(len(sets), dtype=np.int64)
        for each, source in enumerate(self._sources):
            own = np.flatnonzero(sets == each)
            if len(own):
                first, last = int(before[own[0]]), int(before[own[-1]])  # they come in order
                found = source.stretch(first, last + 1)
                numbers[own] = found[before[own] - first] + self._starts[each]
        return numbers

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read samples by their numbers, in the given order, by field."""
        sets = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[str, Values] = {}
        for each in np.unique(sets).tolist() or [0]:  # no samples have their fields too
            own = np.flatnonzero(sets == each)
            for name, values in self._sources[each].take(numbers[own] - self._starts[each]).items():
                if name not in found:
                    found[name] = np.empty((len(numbers), *values.shape[1:]), dtype=values.dtype)
                found[name][own] = values
        return found

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples; does not wait."""
        sets = np.searchsorted(self._starts, numbers, side="right") - 1
        for each in np.unique(sets).tolist():
            self._sources[each].fetch(numbers[sets == each] - self._starts[each])

    def close(self) -> None:
        """Close all shards that are open."""
        for source in self._sources:
            source.close()


@dataclass(frozen=True, slots=True)
class DecodeImages:
    """Decodes a field of encoded pictures (PNG, JPEG and what else Pillow reads) to (rows, height, width, channels) uint8.

    size: height and width that all are brought to, bilinearly; None if they have one size already. channels: 3 for colours,
    1 for grey levels.
    """

    field: str
    size: tuple[int, int] | None = None
    channels: int = 3

    def __call__(self, columns: dict[str, Values]) -> dict[str, Values]:
        """Replace the field by its pixels. Raises: SampleSetError for what is no picture."""
        pixels = [self._decoded(data, number) for number, data in enumerate(columns[self.field])]
        shapes = {each.shape for each in pixels}
        if len(shapes) > 1:
            raise SampleSetError(
                f"pictures of {self.field!r} have several sizes, {sorted(shapes)[:3]}: give size="
            )
        nothing = np.empty((0, *(self.size or (0, 0)), self.channels), dtype=np.uint8)
        return columns | {self.field: np.stack(pixels) if pixels else nothing}

    def _decoded(self, data: bytes, number: int) -> Values:
        from PIL import Image, UnidentifiedImageError  # late: few processes read pictures

        mode = "L" if self.channels == 1 else "RGB"
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if self.size is not None:  # a JPEG is decoded at a fraction of its size that suffices
                    opened.draft(mode, (self.size[1], self.size[0]))
                picture = opened.convert(mode)
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise SampleSetError(
                f"field {self.field!r} of a batch's sample {number} is no picture: {error}"
            ) from error
        if self.size is not None and picture.size != (self.size[1], self.size[0]):
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        return pixels[:, :, None] if self.channels == 1 else pixels


class Shares:
    """Places of the sets in a mixture's sequence. weights: of each set, above 0, in any unit."""

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={list(weights)} of a mixture must be numbers above 0")
        total = float(sum(weights))
        self._bounds = np.cumsum([0.0, *(weight / total for weight in weights)])
        self._bounds[-1] = 1.0
        self._round = max(_ROUND, ceil(_LEAST_PLACES * total / min(weights)))
        self._seed = seed

    def stretch(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """Set at each place from `start` to `stop` (exclusive), and how many samples of that set came before."""
        sets, before = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for number in range(start // self._round, -(-stop // self._round)):
            first = number * self._round
            own, earlier = self._of_round(number)
            within = slice(max(start - first, 0), max(min(stop - first, self._round), 0))
            sets.append(own[within])
            before.append(earlier[within])
        return np.concatenate(sets), np.concatenate(before)

    def _of_round(self, number: int) -> tuple[Numbers, Numbers]:
        earlier, later = self._counts(number), self._counts(number + 1)
        sets = np.repeat(np.arange(len(earlier)), later - earlier)[drawn(self._round, self._seed, number)]
        before = np.empty_like(sets)
        for each, count in enumerate(earlier):
            own = sets == each
            before[own] = count + np.arange(int(own.sum()))
        return sets, before

    def _counts(self, rounds: int) -> npt.NDArray[np.int64]:
        """Samples of each set in the first `rounds` rounds."""
        return np.diff(np.floor(self._bounds * (rounds * self._round) + 0.5)).astype(np.int64)
