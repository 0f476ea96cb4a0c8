"""Measurement of Feast's stream push into the same redis-server, for `toque.load.benchmarks.prep.streams`: `python -P feast_push.py FOLDER REDIS_URL`.

Run by the interpreter of an environment that has Feast, and imports nothing of ours. Feast computes no windows from a stream: it is
given rows as they would come out of a stream processor, from `pushed.parquet`, in batches of as many as a consumer of ours reads.
Prints JSON: rows a second, and rows a second of this process's CPU (`…_cpu`), to the online store, and to both.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BATCH_ROWS = 20_000


def main(folder: Path, redis_url: str) -> dict[str, Any]:
    """Push the rows to the online store, and then again to both."""
    feast = importlib.import_module("feast")
    push = importlib.import_module("feast.data_source")
    pd = importlib.import_module("pandas")
    rows = pd.read_parquet(folder / "pushed.parquet")
    fs = _store(feast, push, folder, redis_url)
    measured: dict[str, Any] = {"version": feast.__version__}
    for name, mode in (("online", push.PushMode.ONLINE), ("both", push.PushMode.ONLINE_AND_OFFLINE)):
        begun, used, pushed = time.perf_counter(), time.process_time(), 0
        while pushed < len(rows) and time.perf_counter() - begun < 60:
            fs.push("pushed", rows.iloc[pushed : pushed + BATCH_ROWS], to=mode)
            pushed += BATCH_ROWS
        done = min(pushed, len(rows))
        measured[name] = done / (time.perf_counter() - begun)
        measured[f"{name}_cpu"] = done / (time.process_time() - used)
    return measured


def _store(feast: Any, push: Any, folder: Path, redis_url: str) -> Any:
    types = importlib.import_module("feast.types")
    where = urlsplit(redis_url)
    (folder / "feast").mkdir()
    config = feast.RepoConfig(
        project="bench",
        registry=str(folder / "feast" / "registry.db"),
        provider="local",
        offline_store={"type": "file"},
        online_store={"type": "redis", "connection_string": f"{where.hostname}:{where.port},db=1"},
        entity_key_serialization_version=3,
    )
    fs = feast.FeatureStore(config=config)
    key = feast.Entity(name="user", join_keys=["user"], value_type=feast.ValueType.STRING)
    batch = feast.FileSource(path=str(folder / "pushed.parquet"), timestamp_field="event_timestamp")
    view = feast.FeatureView(
        name="spent",
        entities=[key],
        schema=[feast.Field(name=name, dtype=types.Float64) for name in ("count", "sum", "mean")],
        source=push.PushSource(name="pushed", batch_source=batch),
        ttl=timedelta(days=0),
        online=True,
    )
    fs.apply([key, view])
    return fs


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
