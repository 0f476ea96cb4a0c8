"""Benchmark of training data: `training_data loader` reads samples as batches, `training_data limit` trains under a limit of memory.

`loader` reads pictures and packed tokens; the second epoch counts. `limit` trains the tabular network from shards of a set many times the
memory that its process may have (RLIMIT_DATA: all that it allocates, mapped files apart; stacks of threads count whole, so they are of
1 MiB, and so does what an allocator keeps for later, so it is libc's for all, which gives pieces of 64 KiB and more back), and prints how busy
the training was and what it held. Its tables stay in `--folder` for the next run; `rows` makes them and does no more.
"""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import torch

from toque.functions import Context, use_context
from toque.functions.training import TabularParams, train_tabular
from toque.functions.training_data import (
    DecodeImages,
    OpenSet,
    Reading,
    SampleStream,
    SetSource,
    ShardCache,
    Shuffle,
    write_samples,
)
from toque.load.benchmarks.harness import MIB, Stopwatch, greatest, in_child, main, own_bytes, say, temporary
from toque.registry import ObjectStore, Table, TableSnapshot, open_store

LENGTH, SIDE, PIECE = 2_048, 224, 250_000
COLUMNS = [f"x{number}" for number in range(20)]
_ROW_BYTES = 8 * (len(COLUMNS) + 2)
_ALLOCATOR = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
_SMALL_STACKS = ("sh", "-c", 'ulimit -s 1024; exec "$0" "$@"')


def run(
    what: Literal["loader", "limit", "rows"],
    *,
    images: int = 4_000,
    texts: Annotated[int, "of 2,048 tokens"] = 20_000,
    workers: Annotated[int, "threads of the loader"] = 2,
    rounds: int = 3,
    limit_mb: Annotated[int, "above what the imports take"] = 200,
    times: Annotated[float, "the set is so many times the limit"] = 5.0,
    folder: Annotated[Path | None, "for stores and caches; by default a temporary one"] = None,
) -> None:
    """Run what the command line asks for."""
    with temporary(folder) as own:
        if what == "loader":
            _load(own, "image", pa.array(_pictures(images), pa.binary()), 64, workers, rounds)
            numbers = np.random.default_rng(0).integers(0, 50_000, texts * LENGTH, dtype=np.int32)
            tokens = pa.FixedSizeListArray.from_arrays(pa.array(numbers), LENGTH)
            _load(own, "tokens", tokens, 16, workers, rounds)
            return
        place = folder or own
        store, rows = open_store((place / "store").as_uri()), int(times * limit_mb * MIB / _ROW_BYTES)
        for count, seed in ((rows // 10, 1), (rows, 2)):
            snapshot = _rows(store, f"rows-{count}", count, seed=seed)
            if what == "limit":
                size = count * _ROW_BYTES / MIB / limit_mb
                say(f"set of {count:,} rows, {size:.1f} times the limit of {limit_mb} MiB:")
                environment = {**_ALLOCATOR, "TMPDIR": str(place)}
                arguments = (store.url, snapshot.model_dump(mode="json"), limit_mb)
                in_child(train_limited, *arguments, environment=environment, before=_SMALL_STACKS)


def _load(folder: Path, kind: str, samples: pa.Array, batch: int, workers: int, rounds: int) -> None:
    """Read all samples into tensors, and print samples a second of the second epoch."""
    store = open_store((folder / kind).as_uri())
    written = write_samples(store, kind, [pa.table({kind: samples})])
    samples_set = OpenSet.of(store, written, shuffle=Shuffle())
    source, rates = SetSource(samples_set, ShardCache(folder / f"{kind}-cache")), []
    decode = DecodeImages("image") if kind == "image" else None
    for _ in range(rounds):
        rows, watch = source.epoch_rows, Stopwatch()
        with SampleStream(source, Reading(batch, threads=workers), decode=decode, stop=2 * rows) as stream:
            for read in stream:
                torch.from_numpy(read.columns[kind])
                if read.position == rows:
                    watch = Stopwatch()
        rates.append(rows / watch.wall_s)
    say(f"{kind:7} {np.median(rates):10,.0f} samples/s ({min(rates):,.0f} to {max(rates):,.0f})")


def _pictures(count: int) -> Iterator[bytes]:
    from PIL import Image

    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(count):
        waves = [128 + 100 * np.sin(x / a + y / b) for a, b in generator.uniform(4, 40, (3, 2))]
        noisy = np.stack(waves, axis=2) + generator.normal(0, 12, (SIDE, SIDE, 3))
        target = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=85)
        yield target.getvalue()


def _rows(store: ObjectStore, name: str, rows: int, *, seed: int) -> TableSnapshot:
    table, present = Table(store, name), 0
    snapshot = TableSnapshot(name=name, version=0)
    if table.exists():
        present, snapshot = table.open().count(), TableSnapshot(name=name, version=table.open().version())
    for first in range(present, rows, PIECE):
        count, generator = min(PIECE, rows - first), np.random.default_rng([seed, first])
        columns: dict[str, Any] = {column: generator.standard_normal(count) for column in COLUMNS}
        label = (columns["x0"] + generator.standard_normal(count) > 0).astype(np.float64)
        micros = np.sort(generator.integers(0, 86_400 * 10**6, count)) + first * 10**6
        times = pa.array(micros).cast(pa.timestamp("us", "UTC"))
        snapshot = table.append(pa.table({**columns, "y": label, "event_timestamp": times}))
    return snapshot


def train_limited(url: str, rows: dict[str, Any], limit_mb: int) -> None:
    """Train from shards under a limit, and print what it took. The limit begins once a small training has imported all."""
    used = Context(store=open_store(url), store_url=url, actor="benchmark")
    params = TabularParams(split="random", epochs=2, rows_in="shards")
    torch.set_num_threads(1)
    with use_context(used):
        train_tabular("warm", _rows(used.store, "warm", 20_000, seed=0), "y", COLUMNS, [], params=params)
        limit = psutil.Process().memory_info().data + limit_mb * MIB  # what counts towards RLIMIT_DATA
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with greatest(own_bytes) as most:
            before, watch = most[0], Stopwatch()
            snapshot = TableSnapshot.model_validate(rows)
            trained = train_tabular("limited", snapshot, "y", COLUMNS, [], params=params)
            took_s = watch.wall_s
        metrics = used.registry().get_run(trained.run_id).record().metrics
    say(
        f"  {took_s:.0f} s, busy {metrics['busy']:.3f}, {metrics['rows_per_s']:,.0f} rows/s in an epoch, "
        f"own memory grew {(most[0] - before) / MIB:.0f} MiB at most"
    )


if __name__ == "__main__":
    main(run, "pyarrow", "torch", "pillow")
