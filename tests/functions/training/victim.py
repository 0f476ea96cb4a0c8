"""A process that works, to be killed: what it does, store, table, its version, and a running cluster's address.

Without an address it starts a cluster of its own, but for "batch here".
"""

import json
import sys

import ray

from tests.functions.training.tabular_setup import FAST, NAMES, POPULATION
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.training import train_tabular
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.jobs import tune_tabular
from toque.registry import TableSnapshot, open_store

LONG = TabularParams(hidden=(64, 32), batch_size=64, epochs=30, patience=30)
SHARD_ROWS = 5_000  # enough commits that one who looks slowly still comes before the last


def work(what: str, snapshot: TableSnapshot) -> object:
    if what == "sweep":
        return tune_tabular("late", snapshot, **NAMES, params=FAST, num_samples=4, concurrency=1)
    if what == "population":
        return tune_tabular("late", snapshot, **NAMES, **POPULATION)
    if what == "train":
        return train_tabular("late", snapshot, **NAMES, params=LONG, num_workers=2)
    return predict_batch("late", snapshot, version=1, shard_rows=SHARD_ROWS)


if __name__ == "__main__":
    what, url, name, version, *address = sys.argv[1:]
    if address:
        ray.init(address=address[0], log_to_driver=False)
    elif what != "batch here":
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with use_context(Context(store=open_store(url), store_url=url)):
        done = work(what, TableSnapshot(name=name, version=int(version)))
    sys.stdout.write(json.dumps(done.model_dump(mode="json")) + "\n")  # type: ignore[attr-defined]
