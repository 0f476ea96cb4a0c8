"""Benchmark of training sets larger than memory: run `python -m toque.load.benchmarks.prep.features_big [--entities 100000,300000]`.

Ten feature rows for each entity row, simulated on disk piece by piece, joined over a Ray cluster of this machine and
written to Parquet. Prints the time an entity row, which should not grow, and the memory of all processes together, each
shared page counted once, by kind of process.
"""

import argparse
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import ray

from toque.featurestore import FeatureStore
from toque.load.benchmarks.prep.fixtures import FEATURES, NOW, entity_rows, feature_rows, wide
from toque.load.benchmarks.timing import print_machine
from toque.registry import open_store

PIECE = 1_000_000
KEYS_SHARE = 5  # feature rows a key, so that more rows are more keys
GIB = 2**30
_RAYS_OWN = (b"SpillWorker", b"RestoreWorker", b"Agent", b"_StatsActor", b"Coordinator")  # among its workers


def main() -> None:
    """Run every size and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", default="100000,300000", help="entity rows (default: %(default)s)")
    parser.add_argument(
        "--object-store-gib", type=float, default=0.75, help="shared memory before Ray spills to disk"
    )
    parser.add_argument("--folder", default=None, help="for the simulated tables and Ray's spilling")
    arguments = parser.parse_args()
    print_machine("ray", "polars", "pyarrow", "deltalake")
    for entities in (int(size) for size in arguments.entities.split(",")):
        with (
            tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
            cluster(folder, int(arguments.object_store_gib * GIB)),
        ):
            bench(Path(folder), entities)


@contextlib.contextmanager
def cluster(folder: str, object_store_bytes: int) -> Iterator[None]:
    """Start a Ray cluster on this machine that spills into the folder."""
    ray.init(
        address="local",  # never a cluster that happens to run here
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=object_store_bytes,
        object_spilling_directory=folder,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def bench(folder: Path, entities: int) -> None:
    """Benchmark a training set of one size."""
    fs = FeatureStore(open_store((folder / "store").as_uri()), clock=lambda: NOW)
    fs.apply([wide])
    rows, keys = entities * 10, entities * 10 // KEYS_SHARE
    for number, at in enumerate(range(0, rows, PIECE)):
        fs.write_offline(wide, feature_rows(min(PIECE, rows - at), keys=keys, seed=number + 2))
    entity_table = entity_rows(entities, keys=keys)
    entity_table = entity_table.append_column("number", pa.array(range(entities), pa.int64()))
    with memory_watch() as peak:
        start = time.perf_counter()
        job = fs.get_historical_features(entity_table, features=wide)
        job.to_ray().write_parquet(str(folder / "out"))
        took = time.perf_counter() - start
    made = ds.dataset(folder / "out").count_rows()
    if made != entities:
        raise RuntimeError(f"{made} rows came out of {entities}")
    parts = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in sorted(peak.items()))
    print(
        f"training set {entities:>10,} x {rows:>11,} x {FEATURES}: {took:8.1f} s, {took / entities * 1e6:7.1f} us a row, "
        f"peak {sum(peak.values()) / GIB:5.2f} GiB ({parts}), load {os.getloadavg()[0]:.0f}",
        flush=True,
    )


@contextlib.contextmanager
def memory_watch(every_s: float = 0.5) -> Iterator[dict[str, int]]:
    """Track the peak memory of this process and its descendants, in bytes by kind."""
    peak: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            now = _memory()
            if sum(now.values()) > sum(peak.values()):
                peak.clear()
                peak.update(now)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    yield peak
    ended.set()
    watching.join()


def _memory() -> dict[str, int]:
    """Read the memory of this process and its descendants by kind, shared pages split among processes (Linux)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    for _ in range(8):  # generations
        family |= {pid for pid, parent in parents.items() if parent in family}
    sizes = {"driver": 0, "workers": 0, "ray": 0, "object store": 0}
    for pid in family:
        with contextlib.suppress(OSError):
            share, shared = _share(pid)
            sizes[_kind(pid)] += share - shared
            sizes["object store"] += shared
    return sizes


def _kind(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return "workers" if command.startswith(b"ray::") and not any(n in command for n in _RAYS_OWN) else "ray"


def _share(pid: int) -> tuple[int, int]:
    """Read a process's share of memory in bytes, and how much of it is of shared memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes.get("Pss", 0), sizes.get("Pss_Shmem", 0)


if __name__ == "__main__":
    main()
