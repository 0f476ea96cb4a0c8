"""Benchmark of training data: run `python -m toque.load.benchmarks.prep.training_data loader|limit [--peer-python PYTHON]`.

`loader` reads pictures and packed tokens as batches, by ours and by the loaders of an interpreter that has `mosaicml-streaming` and
`webdataset`, in turns. `limit` trains the tabular network from shards of a set many times the memory that its process may have
(RLIMIT_DATA: all that it allocates, mapped files apart; stacks of threads count whole, so they are of 1 MiB, and so does what an
allocator keeps for later, so it is libc's for all, which gives pieces of 64 KiB and more back), and prints how busy the training was
and what it held. Its tables stay in `--folder` for the next run; `rows` makes them and does no more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
from toque.load.benchmarks.timing import print_machine
from toque.load.peers import training_data as peers
from toque.registry import ObjectStore, Table, TableSnapshot, open_store

BATCH = {"image": 64, "text": 16}
LENGTH, SIDE, PIECE = 2_048, 224, 250_000
_STACK_KB = 1_024
_ALLOCATOR = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
}
COLUMNS = [f"x{number}" for number in range(20)]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["loader", "limit", "rows", "train-limited"])
    parser.add_argument(
        "--peer-python", default=None, help="interpreter with mosaicml-streaming and webdataset"
    )
    parser.add_argument("--images", type=int, default=4_000, help="(default: %(default)s)")
    parser.add_argument("--texts", type=int, default=20_000, help="of 2,048 tokens (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="threads, or processes of a peer (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--limit-mb", type=int, default=200, help="above what the imports take (default: %(default)s)"
    )
    parser.add_argument(
        "--times", type=float, default=5.0, help="the set is so many times the limit (default: %(default)s)"
    )
    parser.add_argument("--folder", default=None, help="for stores and caches (default: the temporary one)")
    arguments = parser.parse_args()
    if arguments.what == "train-limited":
        _train_limited(json.loads(sys.stdin.read()))
        return
    print_machine("pyarrow", "torch", "pillow")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.what in {"limit", "rows"}:
            _limit(Path(arguments.folder or folder), arguments)
            return
        for kind, count in (("image", arguments.images), ("text", arguments.texts)):
            _loaders(Path(folder), kind, count, arguments)


def _loaders(folder: Path, kind: str, count: int, arguments: argparse.Namespace) -> None:
    """Read the same samples by every loader in turns, and print the median rate of each."""
    raw, own = folder / f"{kind}-raw", folder / f"{kind}-ours"
    raw.mkdir()
    samples = list(_pictures(count) if kind == "image" else _texts(count))
    for number, data in enumerate(samples):
        (raw / f"{number:08d}.bin").write_bytes(data)
    store = open_store(own.as_uri())
    source = SetSource(
        OpenSet.of(store, write_samples(store, kind, [_table(kind, samples)]), shuffle=Shuffle()),
        ShardCache(folder / f"{kind}-cache"),
    )
    readers: dict[str, Callable[[], float]] = {"ours": lambda: _read_ours(source, kind, arguments.workers)}
    if arguments.peer_python:
        for library in ("streaming", "webdataset"):
            target = folder / f"{kind}-{library}"
            target.mkdir()
            _peer(arguments.peer_python, library, "write", kind, str(target), str(raw))
            readers[library] = _peer_reader(arguments, library, kind, str(target))
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(arguments.rounds):
        for name, read in readers.items():
            rates[name].append(read())
    for name, found in rates.items():
        median = float(np.median(found))
        ratio = median / float(np.median(rates["streaming"])) if "streaming" in rates else float("nan")
        print(
            f"{kind} {name:<11} {median:10,.0f} samples/s ({min(found):,.0f} to {max(found):,.0f}), "
            f"{ratio:.2f} of streaming, load {os.getloadavg()[0]:.0f}",
            flush=True,
        )


def _read_ours(source: SetSource, kind: str, workers: int) -> float:
    """Read two epochs into tensors; returns samples per second of the second."""
    decode = DecodeImages("image") if kind == "image" else None
    rows, begin = source.epoch_rows, 0.0
    reading = Reading(BATCH[kind], threads=max(workers, 1))
    with SampleStream(source, reading, decode=decode, stop=2 * rows) as stream:
        for batch in stream:
            torch.from_numpy(batch.columns["image" if kind == "image" else "tokens"])
            if batch.position == rows:
                begin = time.perf_counter()
    return rows / (time.perf_counter() - begin)


def _peer_reader(arguments: argparse.Namespace, library: str, kind: str, folder: str) -> Callable[[], float]:
    def read() -> float:
        rest = [str(BATCH[kind]), str(arguments.workers), "2"]
        return float(_peer(arguments.peer_python, library, "read", kind, folder, *rest)[-1])

    return read


def _peer(python: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [python, str(Path(peers.__file__)), *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2_000:]}")
    return done.stdout.split()


def _pictures(count: int) -> Iterator[bytes]:
    import io

    from PIL import Image

    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(count):
        waves = [128 + 100 * np.sin(x / a + y / b) for a, b in generator.uniform(4, 40, (3, 2))]
        noisy = np.stack(waves, axis=2) + generator.normal(0, 12, (SIDE, SIDE, 3))
        target = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=85)
        yield target.getvalue()


def _texts(count: int) -> Iterator[bytes]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 50_000, LENGTH, dtype=np.int32).tobytes()


def _table(kind: str, samples: list[bytes]) -> pa.Table:
    if kind == "image":
        return pa.table({"image": pa.array(samples, pa.binary()), "label": np.arange(len(samples))})
    flat = pa.array(np.frombuffer(b"".join(samples), dtype=np.int32))
    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(flat, LENGTH)})


def _limit(folder: Path, arguments: argparse.Namespace) -> None:
    """Make a table of so many times the limit, and train on it in a process that has no more."""
    url = (folder / "store").as_uri()
    store = open_store(url)
    row_bytes = 8 * (len(COLUMNS) + 2)
    rows = int(arguments.times * (arguments.limit_mb << 20) / row_bytes)
    for of, seed in ((rows // 10, 1), (rows, 2)):
        snapshot = _rows(store, f"rows-{of}", of, seed=seed)
        if arguments.what == "rows":
            continue
        asked = {"url": url, "snapshot": snapshot.model_dump(), "limit_mb": arguments.limit_mb}
        done = subprocess.run(
            [
                "sh",
                "-c",
                f'ulimit -s {_STACK_KB}; exec "$0" "$@"',
                sys.executable,
                "-m",
                "toque.load.benchmarks.prep.training_data",
                "train-limited",
            ],
            input=json.dumps(asked),
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **_ALLOCATOR, "TMPDIR": str(folder)},
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3_000:])
        times = of * row_bytes / (arguments.limit_mb << 20)
        print(
            f"set of {of:,} rows, {times:.1f} times the limit of {arguments.limit_mb} MiB: {done.stdout.strip()}",
            flush=True,
        )


def _rows(store: ObjectStore, name: str, rows: int, *, seed: int) -> TableSnapshot:
    table, there = Table(store, name), 0
    snapshot = TableSnapshot(name=name, version=0)
    if table.exists():
        there, snapshot = table.open().count(), TableSnapshot(name=name, version=table.open().version())
    for at in range(there, rows, PIECE):
        count, generator = min(PIECE, rows - at), np.random.default_rng([seed, at])
        columns: dict[str, Any] = {column: generator.standard_normal(count) for column in COLUMNS}
        label = (columns["x0"] + generator.standard_normal(count) > 0).astype(np.float64)
        times = pa.array(np.sort(generator.integers(0, 86_400 * 10**6, count)) + at * 10**6)
        snapshot = table.append(
            pa.table({**columns, "y": label, "event_timestamp": times.cast(pa.timestamp("us", "UTC"))})
        )
    return snapshot


def _train_limited(asked: dict[str, Any]) -> None:
    """Train from shards under a limit, and print what it took. The limit begins once a small training has imported all."""
    url, store = asked["url"], open_store(asked["url"])
    context = Context(store=store, store_url=url, actor="benchmark")
    snapshot = TableSnapshot.model_validate(asked["snapshot"])
    params = TabularParams(split="random", epochs=2, rows_in="shards")
    torch.set_num_threads(1)
    with use_context(context):
        train_tabular("warm", _rows(store, "warm", 20_000, seed=0), "y", COLUMNS, [], params=params)
        before = _allocated()
        limit = before + (asked["limit_mb"] << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with _peak() as held:
            begin = time.perf_counter()
            trained = train_tabular("limited", snapshot, "y", COLUMNS, [], params=params)
            seconds = time.perf_counter() - begin
        metrics = context.registry().get_run(trained.run_id).record().metrics
    print(
        f"{seconds:.0f} s, busy {metrics['busy']:.3f}, {metrics['rows_per_s']:,.0f} rows/s in an epoch, "
        f"own memory grew {max(held) >> 20} MiB at most, load {os.getloadavg()[0]:.0f}"
    )


def _allocated() -> int:
    """Bytes that count towards RLIMIT_DATA."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) << 10


class _peak:  # noqa: N801 - a context manager
    """Own resident bytes above those before, sampled while the block runs; mapped files apart."""

    def __enter__(self) -> list[int]:
        self._ended, self._before = threading.Event(), self._own()
        self._held = [0]
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self._held

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._held.append(self._own() - self._before)

    @staticmethod
    def _own() -> int:
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
