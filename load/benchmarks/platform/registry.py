"""Benchmark of the registry: run `python -m toque.load.benchmarks.platform.registry [--peer-python PATH]`.

Requests are counted by a store that counts, times are on a folder (every write reaches the disk). The peer is
MLflow on SQLite, run by the interpreter of an environment that has it, since it cannot share ours; without
one its lines are left out, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toque.load.benchmarks.timing import Timing, print_machine, timed
from toque.registry import Fold, Journal, ModelPolicy, ObjectStore, Registry, Run, RunRecord, open_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.runs.record import SCHEMA, Index, decode, encode, step

WRITES = {"create", "put", "upload", "delete"}
SEARCHED_RUNS = 10_000

# What MLflow does for the same: run with the peer's interpreter, prints {name: [seconds, ...]}.
PEER = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
experiment = client.create_experiment("bench")
run = client.create_run(experiment).info.run_id
out = {}
def timed(name, call, repeats):
    call()
    out[name] = []
    for _ in range(repeats):
        start = time.perf_counter(); call(); out[name].append(time.perf_counter() - start)
at = int(time.time() * 1000)
timed("log_metric", lambda: client.log_metric(run, "loss", 0.5, step=1), 100)
batch = [Metric(f"m{i}", 0.5, at, 0) for i in range(1000)]
timed("log_batch", lambda: client.log_batch(run, metrics=batch), 5)
client.create_registered_model("m")
version = client.create_model_version("m", "file:///nowhere").version
timed("set alias", lambda: client.set_registered_model_alias("m", "champion", version), 50)
timed("resolve alias", lambda: client.get_model_version_by_alias("m", "champion"), 100)
def begin_and_end():
    client.set_terminated(client.create_run(experiment).info.run_id)
timed("start and end a run", begin_and_end, 30)
print(json.dumps({"version": mlflow.__version__, "seconds": out}))
"""


class CountingStore:
    """Store that counts the requests it passes on."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += name in {*WRITES, "get", "find", "list", "download"}
        return getattr(self._inner, name)

    def count(self, action: Callable[[], object]) -> str:
        """Run a call and count its store requests."""
        self.calls.clear()
        action()
        writes = sum(self.calls[verb] for verb in WRITES)
        return f"{writes:3d} writes {self.calls.total() - writes:3d} reads"


def main() -> None:
    """Print one line for each operation."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--peer-python", default="", help="interpreter of an environment that has mlflow")
    peer_python = options.parse_args().peer_python
    print_machine("boto3", "pyarrow", "pydantic")
    with tempfile.TemporaryDirectory() as folder:
        peer = _peer(peer_python, Path(folder)) if peer_python else {}
        if not peer:
            print("MLflow is left out: give --peer-python an interpreter that has it")
        _requests(Path(folder))
        _logging(Path(folder), peer)
        _serving(Path(folder), peer)
        _searching(Path(folder))


def _requests(folder: Path) -> None:
    """Count the store requests of each operation, the same on a folder and on S3."""
    store = CountingStore(open_store(f"file://{folder}/counted"))
    ada, bob = Registry(store, actor="ada"), Registry(store, actor="bob")
    ada.create_model("m", policy=ModelPolicy(guarded=frozenset({"champion"})))
    files = _files(folder, 10)
    _count("register 10 files", store.count(lambda: ada.create_version("m", files)))
    _count("register the same 10 again", store.count(lambda: ada.create_version("m", files)))
    bob.get_model("m")
    _count("approve", store.count(lambda: bob.approve("m", 1)))
    bob.approve("m", 2)
    ada.get_model("m")
    _count("promote", store.count(lambda: ada.promote("m", 1)))
    ada.promote("m", 2)
    _count("roll back", store.count(lambda: ada.rollback("m")))
    _count("set traffic", store.count(lambda: ada.set_traffic("m", {"canary": (2, 0.1)})))
    _count("resolve an alias, warm", store.count(lambda: ada.get_version("m", "champion")))
    for length in (10, 63, 65, 500):
        while ada.follow("m").next < length:
            ada.set_version_tags("m", 1, {"n": str(ada.follow("m").next)})
        cold = Registry(store, actor="x")
        _count(
            f"resolve an alias, cold, {length} entries",
            store.count(partial(cold.get_version, "m", "champion")),
        )
    run = ada.start_run("exp")
    _count("1,000 metric points", store.count(lambda: _thousand(run)))
    _count("end a run", store.count(run.finish))
    _count("start a run", store.count(lambda: ada.start_run("exp")))


def _logging(folder: Path, peer: dict[str, Timing]) -> None:
    """Time run tracking against the peer's."""
    reg = Registry(open_store(f"file://{folder}/timed"), actor="ada")
    with reg.start_run("exp") as run:
        one = timed(lambda: run.log_metric("loss", 0.5, step=1), repeats=1000)
        _line("log_metric, the call", one, peer.get("log_metric"))
        many = timed(lambda: _thousand(run), repeats=10)
        each = Timing(many.p20_s / 1000, many.p50_s / 1000, many.p80_s / 1000)
        _line("log_metric, its share of storing 1,000", each, peer.get("log_metric"))
        batch = {f"m{n}": 0.5 for n in range(1000)}

        def stored() -> None:
            run.log_metrics(batch)
            run.flush()

        _line("1,000 metrics, stored", timed(stored, repeats=20), peer.get("log_batch"))
    begin = timed(lambda: reg.start_run("exp").finish(), repeats=30)
    _line("start and end a run", begin, peer.get("start and end a run"))


def _serving(folder: Path, peer: dict[str, Timing]) -> None:
    """Time promotions and reads against the peer's."""
    reg = Registry(open_store(f"file://{folder}/timed"), actor="ada")
    reg.create_model("m")
    files = _files(folder, 3)
    for _ in range(2):
        reg.create_version("m", files)
    turns = iter(range(10_000))
    alias = timed(lambda: reg.set_alias("m", "champion", 1 + next(turns) % 2), repeats=50)
    _line("set alias", alias, peer.get("set alias"))
    warm = timed(lambda: reg.get_version("m", "champion"), repeats=200)
    _line("resolve alias, warm", warm, peer.get("resolve alias"))
    cold = timed(lambda: Registry(reg.store, actor="x").get_version("m", "champion"), repeats=20)
    _line("resolve alias, cold", cold, peer.get("resolve alias"))
    _authenticated(folder, files)


def _authenticated(folder: Path, files: Path) -> None:
    """Time the same promotions and reads with audit keys and without, in turns."""
    for number, keys in enumerate((None, AuditKeys(["ab" * 32]), None, AuditKeys(["ab" * 32]))):
        store = open_store(f"file://{folder}/keys{number}", audit_keys=keys)
        reg = Registry(store, actor="ada")
        reg.create_model("m")
        for _ in range(2):
            reg.create_version("m", files)
        turns = iter(range(10_000))
        promote = partial(_alternate, reg, turns)
        named = "with audit keys" if keys else "without"
        _line(f"set alias, {named}", timed(promote, repeats=200), None)
        cold = timed(lambda store=store: Registry(store, actor="x").get_version("m", "champion"), repeats=50)  # type: ignore[misc]
        _line(f"resolve alias, cold, {named}", cold, None)


def _alternate(reg: Registry, turns: Iterator[int]) -> None:
    reg.set_alias("m", "champion", 1 + next(turns) % 2)


def _searching(folder: Path) -> None:
    """Time a search over many runs: the index is laid as that many ended runs would have left it."""
    store = open_store(f"file://{folder}/searched")
    reg = Registry(store, actor="ada")
    with reg.start_run("other", params={f"p{n}": n for n in range(8)}) as run:
        run.log_metrics({f"m{n}": n / 7 for n in range(5)})
    ended = reg.search_runs("other")[0].to_json()
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
    for number in range(100):  # past the first snapshot, with some entries after it
        body = {"kind": "ended", "run": records[number].to_json()}
        index.transact(lambda _, body=body: body)  # type: ignore[misc]
    where = "metrics.log_loss < 0.1 and params.p3 = '3'"
    found = len(reg.search_runs("exp", where, order_by="metrics.log_loss"))
    warm = timed(lambda: reg.search_runs("exp", where, order_by="metrics.log_loss"), repeats=10)
    _line(f"search {SEARCHED_RUNS:,} runs, warm ({found} found)", warm, None)
    cold = timed(
        lambda: Registry(reg.store, actor="x").search_runs("exp", where, order_by="metrics.log_loss"),
        repeats=5,
    )
    _line(f"search {SEARCHED_RUNS:,} runs, cold", cold, None)
    begin = time.process_time()
    Registry(reg.store, actor="x").search_runs("exp", where, order_by="metrics.log_loss")
    print(f"{'  of which the processor works':<42} {(time.process_time() - begin) * 1e3:9.3f} ms")


def _searched(ended: dict[str, Any], number: int) -> dict[str, Any]:
    """Make one of many runs like `ended`."""
    loss = (number * 7919 % 1000) / 1000
    return {
        **ended,
        "id": f"{number:032x}",
        "experiment": "exp",
        "metrics": {**ended["metrics"], "log_loss": loss},
    }


def _thousand(run: Run) -> None:
    for number in range(1000):
        run.log_metric("loss", 1 / (number + 1), step=number)
    run.flush()


def _files(folder: Path, count: int) -> Path:
    """Make a folder with so many different files of a kilobyte."""
    files = folder / f"files{count}"
    files.mkdir()
    for number in range(count):
        (files / f"{number}.bin").write_bytes(bytes([number]) * 1024)
    return files


def _count(name: str, cost: str) -> None:
    print(f"{name:<42} {cost}")


def _line(name: str, timing: Timing, peer: Timing | None) -> None:
    ratio = f"  {peer.p50_s / timing.p50_s:8.1f} x the peer's {peer.p50_s * 1e3:.3f} ms" if peer else ""
    print(f"{name:<42} {timing}{ratio}")


def _peer(python: str, folder: Path) -> dict[str, Timing]:
    """Time the same operations in the peer. Raises: CalledProcessError if its interpreter has no MLflow."""
    command = [python, "-c", PEER, f"sqlite:///{folder}/mlflow.db"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
    )
    peer = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"MLflow {peer['version']} on SQLite")
    return {
        name: Timing(*map(float, np.quantile(seconds, [0.2, 0.5, 0.8])))
        for name, seconds in peer["seconds"].items()
    }


if __name__ == "__main__":
    main()
