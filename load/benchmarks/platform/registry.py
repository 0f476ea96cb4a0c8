"""Benchmark of the registry: store requests of each operation, and times on a folder, where every write reaches the disk."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from toque.load.benchmarks.harness import line, main, say, temporary, timed, timed_in_turns
from toque.registry import Fold, Journal, ObjectStore, Registry, Run, RunRecord, open_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.runs.record import SCHEMA, Index, decode, encode, step

SEARCHED_RUNS = 10_000
REQUESTS = frozenset({"create", "put", "upload", "delete", "get", "find", "find_aged", "list", "download"})


def run() -> None:
    """Print one line for each operation."""
    with temporary() as folder:
        _requests(folder)
        _runs(folder)
        _aliases(folder)
        _searching(folder)


def _requests(folder: Path) -> None:
    """Count the store requests of reading an alias, warm and cold, by the length of the model's journal; the same on a folder and on S3."""
    store: Any = CountingStore(open_store(f"file://{folder}/counted"))
    ada = Registry(store, actor="ada")
    ada.create_model("m")
    ada.create_version("m", _files(folder, 10))
    ada.promote("m", 1)
    for length in (10, 63, 65, 500):
        while ada.follow("m").next < length:
            ada.set_version_tags("m", 1, {"n": str(ada.follow("m").next)})
        for what, registry in (("warm", ada), ("cold", Registry(store, actor="x"))):
            requests = store.count(partial(registry.get_version, "m", "champion"))
            say(f"resolve an alias, {what}, {length} entries: {requests.total()} requests {dict(requests)}")


def _runs(folder: Path) -> None:
    registry = Registry(open_store(f"file://{folder}/timed"), actor="ada")
    with registry.start_run("exp") as started:
        batch = {f"m{n}": 0.5 for n in range(1000)}
        line("log_metric, the call", timed(lambda: started.log_metric("loss", 0.5, step=1), repeats=1000))
        line("1,000 times log_metric, stored", timed(lambda: _thousand(started), repeats=10))

        def store_batch() -> None:
            started.log_metrics(batch)
            started.flush()

        line("1,000 metrics, stored", timed(store_batch, repeats=20))
    line("start and end a run", timed(lambda: registry.start_run("exp").finish(), repeats=30))


def _aliases(folder: Path) -> None:
    """Time aliases with audit keys and without, in turns."""
    files, sets, cold, registry = _files(folder, 3), {}, {}, None
    for what, keys in (("without audit keys", None), ("with audit keys", AuditKeys(["ab" * 32]))):
        store = open_store(f"file://{folder}/{what.replace(' ', '-')}", audit_keys=keys)
        registry = Registry(store, actor="ada")
        registry.create_model("m")
        for _ in range(2):
            registry.create_version("m", files)
        sets[what] = partial(_alternate, registry, itertools.cycle((1, 2)))
        cold[what] = partial(_resolve_cold, registry)
    for operation, calls, rounds in (("set alias", sets, 200), ("resolve alias, cold", cold, 50)):
        for what, timing in timed_in_turns(calls, rounds).items():
            line(f"{operation}, {what}", timing)
    assert registry is not None  # noqa: S101 - of the loop's last turn
    line("resolve alias, warm", timed(lambda: registry.get_version("m", "champion"), repeats=200))


def _alternate(registry: Registry, versions: itertools.cycle[int]) -> None:
    registry.set_alias("m", "champion", next(versions))


def _resolve_cold(registry: Registry) -> None:
    Registry(registry.store, actor="x").get_version("m", "champion")


def _searching(folder: Path) -> None:
    """Time a search over many runs: the index is laid as that many ended runs would have left it."""
    store = open_store(f"file://{folder}/searched")
    registry = Registry(store, actor="ada")
    with registry.start_run("other", params={f"p{n}": n for n in range(8)}) as started:
        started.log_metrics({f"m{n}": n / 7 for n in range(5)})
    ended = registry.search_runs("other")[0].to_json()
    records = [RunRecord.from_json(_searched(ended, number)) for number in range(SEARCHED_RUNS)]
    laid: Index = {record.id: record for record in records}
    index: Fold[Index] = Fold(
        Journal(store, "experiments/exp/journal", actor="ada"),
        {},
        lambda state, entry: {**laid, **step(state, entry)},
        encode=encode,
        decode=decode,
        schema=SCHEMA,
    )
    for record in records[:100]:  # past the first snapshot, with some entries after it
        body = {"kind": "ended", "run": record.to_json()}
        index.transact(lambda _, body=body: body)  # type: ignore[misc]

    def search(cold: bool) -> int:  # noqa: FBT001
        used = Registry(store, actor="x") if cold else registry
        where = "metrics.log_loss < 0.1 and params.p3 = '3'"
        return len(used.search_runs("exp", where, order_by="metrics.log_loss"))

    for what, cold, repeats in (("warm", False, 10), ("cold", True, 5)):
        found, timing = search(cold), timed(partial(search, cold), repeats=repeats)
        line(f"search {SEARCHED_RUNS:,} runs, {what} ({found} found)", timing)
    begin = time.process_time()
    search(cold=True)
    say(f"of which the processor works {(time.process_time() - begin) * 1e3:.0f} ms, cold")


def _searched(ended: dict[str, Any], number: int) -> dict[str, Any]:
    """Make one of many runs like `ended`."""
    metrics = {**ended["metrics"], "log_loss": (number * 7919 % 1000) / 1000}
    return {**ended, "id": f"{number:032x}", "experiment": "exp", "metrics": metrics}


def _thousand(started: Run) -> None:
    for number in range(1000):
        started.log_metric("loss", 1 / (number + 1), step=number)
    started.flush()


def _files(folder: Path, count: int) -> Path:
    """Make a folder with so many different files of a kilobyte."""
    files = folder / f"files{count}"
    files.mkdir()
    for number in range(count):
        (files / f"{number}.bin").write_bytes(bytes([number]) * 1024)
    return files


class CountingStore:
    """Store that counts its requests, and is opened anew without a count in another process."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.requests[name] += name in REQUESTS
        return getattr(self._store, name)

    def __reduce__(self) -> Any:
        return open_store, (self._store.url,)

    def count(self, call: Callable[[], object]) -> Counter[str]:
        """Make a call, and count its requests."""
        self.requests.clear()
        call()
        return +self.requests


if __name__ == "__main__":
    main(run, "boto3", "pyarrow", "pydantic")
