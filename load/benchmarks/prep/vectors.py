"""Benchmark of nearest neighbours: run `python -m toque.load.benchmarks.prep.vectors [--rows 100000] [--length 384] [--searches 300]`.

With `--folder` the rows and the index stay there, and what is there is not made again: `--until build` makes them, and a later run
searches, each in a process of its own, whose greatest memory it prints.

Clustered vectors: 2,000 centres of unequal sizes, 24 directions of spread around each, a little noise, all of length one. Times are of the
wall and of the searching thread's CPU, since a machine that is shared tells only the second; the floor is one numpy product of the
query with all vectors, in the same run.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Int64, String, Vector, VectorIndex
from toque.load.benchmarks.timing import print_machine
from toque.registry import open_store

NOW = datetime(2024, 5, 1, tzinfo=UTC)
CENTRES, DIRECTIONS, GROUPS = 2_000, 24, 64
K = 10
AT_ONCE = 50_000

Floats = np.ndarray[Any, np.dtype[np.float32]]


def clustered(count: int, length: int, seed: int) -> Floats:
    """Draw vectors as texts of many topics have them."""
    shape = np.random.default_rng(1)
    centres = shape.standard_normal((CENTRES, length), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    spread = shape.standard_normal((GROUPS, DIRECTIONS, length), dtype=np.float32) / np.sqrt(length)
    sizes = 1 / np.arange(1, CENTRES + 1) ** 0.8
    chance = np.random.default_rng(seed)
    which = chance.choice(CENTRES, count, p=sizes / sizes.sum())
    made = centres[which]
    within = 0.35 * chance.standard_normal((count, DIRECTIONS), dtype=np.float32)
    for group in range(GROUPS):
        members = np.flatnonzero(which % GROUPS == group)
        made[members] += within[members] @ spread[group]
    made += 0.02 * chance.standard_normal(made.shape, dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def filled(folder: Path, rows: int, length: int) -> tuple[FeatureStore, FeatureView]:
    """Write a view of vectors to a store of its own."""
    view = FeatureView(
        "docs",
        [Entity("doc", dtype=Int64)],
        [Field("v", Vector(length)), Field("lang", String)],
        indexes=[VectorIndex("v")],
    )
    store = FeatureStore(open_store(folder.as_uri()), clock=lambda: NOW)
    store.apply([view])
    version = store.offline.version(view)
    there = 0 if version is None else sum(file.rows for file in version.files)
    for first in range(there, rows, AT_ONCE):
        store.write_offline(view, table(first, min(AT_ONCE, rows - first), length, hours=24))
    return store, view


def table(first: int, count: int, length: int, *, hours: int) -> pa.Table:
    """Rows of documents from a number on; one in ten has the language that is filtered by."""
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(clustered(count, length, first + 7).reshape(-1)), length
    )
    times = pa.array([NOW - timedelta(hours=hours)] * count)
    numbers = pa.array(range(first, first + count))
    langs = ["de" if number % 10 == 0 else "en" for number in range(count)]
    return pa.table(
        {"doc": numbers, "v": vectors, "lang": langs, "event_timestamp": times, "created_timestamp": times}
    )


def timed(search: Callable[[Floats], Any], queries: Floats) -> tuple[list[Any], str]:
    """Search for each query; returns the answers, and percentiles of wall and CPU in milliseconds."""
    for query in queries[:20]:
        search(query)
    answers, wall, cpu = [], [], []
    for query in queries:
        began, used = time.perf_counter(), time.thread_time()
        answers.append(search(query))
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.thread_time() - used))
    p = {name: np.percentile(taken, [50, 99]) for name, taken in (("wall", wall), ("cpu", cpu))}
    figures = ", ".join(f"{name} p50 {q[0]:.2f} ms, p99 {q[1]:.2f} ms" for name, q in p.items())
    return answers, figures


def recall(answers: list[Any], exact: list[Any]) -> float:
    """Share of the nearest that were found."""
    near = [{each.key["doc"] for each in found.found} for found in exact]
    hits = sum(
        len(one & {each.key["doc"] for each in found.found}) for one, found in zip(near, answers, strict=True)
    )
    return hits / sum(map(len, near))


def build(store: FeatureStore, view: FeatureView) -> None:
    """Build the index of rows that lack one, and print what it took."""
    used, began = time.process_time(), time.perf_counter()
    made = store.refresh_index(view)
    if made is not None:
        print(
            f"build of {made.rows:,} vectors: {time.process_time() - used:.0f} s of CPU, {time.perf_counter() - began:.0f} s of wall; "
            f"recall {made.recall:.3f} at {made.probes} probes"
        )


def run(store: FeatureStore, view: FeatureView, rows: int, length: int, searches: int) -> None:
    """Measure searches and print their figures."""
    newest = store.builds("docs", "v").newest()
    assert newest is not None  # noqa: S101  # it was just built
    files = sum(blob.size for blob in newest.files.values()) / 2**20
    queries = clustered(searches, length, 5)
    began = time.perf_counter()
    store.search(view, vector=queries[0])
    print(f"files of {files:.0f} MiB opened in {time.perf_counter() - began:.1f} s")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("all rows", {}),
        ("a tenth of the rows", {"where": {"lang": "de"}}),
    ]
    for name, options in cases:
        search = partial(store.search, view, k=K, **options)
        exact, slow = timed(partial(_by, search, exact=True), queries[:50])
        found, fast = timed(partial(_by, search), queries)
        print(f"{name}, by the index: recall@10 {recall(found[:50], exact):.3f}; {fast}", flush=True)
        print(f"{name}, exact: {slow}", flush=True)
    store.write_offline(view, table(rows, 5_000, length, hours=1))
    _, tail = timed(lambda q: store.search(view, vector=q, k=K), queries)
    print(f"with 5,000 rows that came since: {tail}")
    everything = np.load(next(iter(folder_of(store))), mmap_mode="r")
    _, floor = timed(lambda q: np.argpartition(-(everything @ q), K)[:K], queries[:50])
    print(f"floor, one product and a partition in numpy: {floor}")


def _by(search: Callable[..., Any], query: Floats, **options: Any) -> Any:
    return search(vector=query, **options)


def folder_of(store: FeatureStore) -> list[Path]:
    """Vectors of the index that this process has opened."""
    return list(store.builds("docs", "v").folder().glob("*/vectors.npy"))


def main() -> None:
    """Run the benchmark for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="100000")
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--folder", default=None, help="where rows and index are kept; by default nowhere")
    parser.add_argument("--until", choices=["rows", "build", "search"], default="search")
    given = parser.parse_args()
    print_machine()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    for rows in map(int, given.rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(given.folder or temporary) / str(rows)
            store, view = filled(folder, rows, given.length)
            if given.until != "rows":
                build(store, view)
            if given.until == "search":
                run(store, view, rows, given.length, given.searches)
            print(f"greatest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
