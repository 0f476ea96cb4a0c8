"""Benchmark of nearest neighbours in clustered vectors.

2,000 centres of unequal sizes, 24 directions of spread around each, a little noise, all of length one. Times are of the wall and of the
searching thread's CPU, since a machine that is shared tells only the second; the floor is one numpy product of the query with all vectors, in
the same run. With `--folder` the rows and the index stay there, and what is there is not made again: `--until build` makes them, and a
later run searches, each in a process of its own, whose greatest memory it prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Int64, String, Vector, VectorIndex
from toque.load.benchmarks.harness import MIB, Stopwatch, greatest_mib, main, say, seconds_of, temporary
from toque.registry import open_store

NOW = datetime(2024, 5, 1, tzinfo=UTC)
CENTRES, DIRECTIONS, GROUPS = 2_000, 24, 64
K, AT_ONCE, NEW_ROWS = 10, 50_000, 5_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


def run(
    *,
    rows: tuple[int, ...] = (100_000,),
    length: int = 384,
    searches: int = 300,
    folder: Annotated[Path | None, "where rows and index are kept; by default nowhere"] = None,
    until: Literal["rows", "build", "search"] = "search",
) -> None:
    """Run the benchmark for each size."""
    for size in rows:
        with temporary() as own:
            store, view = filled((folder or own).resolve() / str(size), size, length)
            if until != "rows":
                watch, index = Stopwatch(), store.refresh_index(view)
                if index is not None:
                    say(
                        f"build of {index.rows:,} vectors: {watch.cpu_s:.0f} s of CPU, {watch.wall_s:.0f} s of wall; "
                        f"recall {index.recall:.3f} at {index.probes} probes"
                    )
            if until == "search":
                search(store, view, size, length, searches)
            say(f"greatest memory {greatest_mib():.0f} MiB")


def clustered(count: int, length: int, seed: int) -> Floats:
    """Draw vectors as texts of many topics have them."""
    shape, chance = np.random.default_rng(1), np.random.default_rng(seed)
    centres = shape.standard_normal((CENTRES, length), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    spread = shape.standard_normal((GROUPS, DIRECTIONS, length), dtype=np.float32) / np.sqrt(length)
    sizes = 1 / np.arange(1, CENTRES + 1) ** 0.8
    which = chance.choice(CENTRES, count, p=sizes / sizes.sum())
    vectors = centres[which]
    within = 0.35 * chance.standard_normal((count, DIRECTIONS), dtype=np.float32)
    for group in range(GROUPS):
        members = np.flatnonzero(which % GROUPS == group)
        vectors[members] += within[members] @ spread[group]
    vectors += 0.02 * chance.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def filled(folder: Path, rows: int, length: int) -> tuple[FeatureStore, FeatureView]:
    """Write a view of vectors to a store of its own."""
    schema = [Field("v", Vector(length)), Field("lang", String)]
    view = FeatureView("docs", [Entity("doc", dtype=Int64)], schema, indexes=[VectorIndex("v")])
    store = FeatureStore(open_store(folder.as_uri()), clock=lambda: NOW)
    store.apply([view])
    version = store.offline.version(view)
    present = 0 if version is None else sum(file.rows for file in version.files)
    for first in range(present, rows, AT_ONCE):
        store.write_offline(view, table(first, min(AT_ONCE, rows - first), length, hours=24))
    return store, view


def table(first: int, count: int, length: int, *, hours: int) -> pa.Table:
    """Rows of documents from a number on; one in ten has the language that is filtered by."""
    flat = pa.array(clustered(count, length, first + 7).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, length)
    times = pa.array([NOW - timedelta(hours=hours)] * count)
    columns = {"doc": pa.array(range(first, first + count)), "v": vectors}
    columns["lang"] = ["de" if number % 10 == 0 else "en" for number in range(count)]
    return pa.table(columns | {"event_timestamp": times, "created_timestamp": times})


def asked(call: Callable[[Floats], Any], queries: Floats) -> tuple[list[Any], str]:
    """Search for each query; returns the answers, and percentiles of wall and CPU in milliseconds."""
    for query in queries[:20]:
        call(query)
    answers, times = [], []
    for query in queries:
        began = time.perf_counter(), time.thread_time()
        answers.append(call(query))
        times.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
    wall, cpu = np.percentile(times, [50, 99], axis=0).T * 1e3
    took = f"wall p50 {wall[0]:.2f} ms, p99 {wall[1]:.2f} ms, cpu p50 {cpu[0]:.2f} ms, p99 {cpu[1]:.2f} ms"
    return answers, took


def recall(answers: list[Any], exact: list[Any]) -> float:
    """Share of the nearest that were found."""
    documents = [[{row.key["doc"] for row in answer.found} for answer in side] for side in (answers, exact)]
    hits = sum(len(ours & nearest) for ours, nearest in zip(*documents, strict=True))
    return hits / sum(map(len, documents[1]))


def search(store: FeatureStore, view: FeatureView, rows: int, length: int, searches: int) -> None:
    """Measure searches and print their figures."""
    newest, queries = store.builds("docs", "v").newest(), clustered(searches, length, 5)
    assert newest is not None  # noqa: S101  # it was just built
    size = sum(blob.size for blob in newest.files.values()) / MIB
    say(
        f"files of {size:.0f} MiB opened in {seconds_of(partial(store.search, view, vector=queries[0])):.1f} s"
    )

    def by(query: Floats, **options: Any) -> Any:
        return store.search(view, vector=query, k=K, **options)

    for name, where in (("all rows", None), ("a tenth of the rows", {"lang": "de"})):
        exact, slow = asked(partial(by, exact=True, where=where), queries[:50])
        answers, fast = asked(partial(by, where=where), queries)
        say(f"{name}, by the index: recall@10 {recall(answers[:50], exact):.3f}; {fast}")
        say(f"{name}, exact: {slow}")
    store.write_offline(view, table(rows, NEW_ROWS, length, hours=1))
    say(f"with {NEW_ROWS:,} rows that came since: {asked(by, queries)[1]}")
    everything = np.load(next(store.builds("docs", "v").folder().glob("*/vectors.npy")), mmap_mode="r")
    _, floor = asked(lambda query: np.argpartition(-(everything @ query), K)[:K], queries[:50])
    say(f"floor, one product and a partition in numpy: {floor}")


if __name__ == "__main__":
    main(run)
