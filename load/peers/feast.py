"""Measurement of Feast on the same rows and redis-server, for `toque.load.benchmarks.prep.features`: `feast.py FOLDER REDIS_URL`.

Run by the interpreter of an environment that has Feast, and imports nothing of ours. Reads `online.parquet`,
`features.parquet` and `entities.parquet` in the folder and prints seconds and sizes as one JSON object.
"""

import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FEATURES = 20
REPEATS = 30


def main(folder: Path, redis_url: str) -> dict[str, Any]:
    """Measure every case Feast has."""
    feast = importlib.import_module("feast")
    pd = importlib.import_module("pandas")
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
    key = feast.Entity(name="key", join_keys=["key"], value_type=feast.ValueType.STRING)
    views = {name: _view(feast, key, folder / path) for name, path in _SOURCES.items()}
    fs.apply([key, *views.values()])
    measured = {"version": feast.__version__} | _online(fs, pd, pd.read_parquet(folder / _SOURCES["online"]))
    entities = pd.read_parquet(folder / "entities.parquet")
    names = [f"training:f{i}" for i in range(FEATURES)]
    took, table = _timed(lambda: fs.get_historical_features(entities, features=names).to_df())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return measured | {"training_s": took, "training_rows": len(table), "peak_gb": peak}


_SOURCES = {"online": "online.parquet", "training": "features.parquet"}


def _view(feast: Any, key: Any, path: Path) -> Any:
    types = importlib.import_module("feast.types")
    source = feast.FileSource(
        path=str(path), timestamp_field="event_timestamp", created_timestamp_column="created_timestamp"
    )
    schema = [feast.Field(name=f"f{i}", dtype=types.Float64) for i in range(FEATURES)]
    name = next(name for name, file in _SOURCES.items() if str(path).endswith(file))
    return feast.FeatureView(
        name=name, entities=[key], schema=schema, source=source, ttl=timedelta(days=0), online=True
    )


def _online(fs: Any, pd: Any, features: Any) -> dict[str, Any]:
    times = features["event_timestamp"]
    start, end = times.min() - pd.Timedelta(days=1), times.max() + pd.Timedelta(days=1)
    client = importlib.import_module("redis").Redis(**_address(fs))
    before = client.info("memory")["used_memory"]
    took, _ = _timed(lambda: fs.materialize(start, end, feature_views=["online"]))
    stored = (client.info("memory")["used_memory"] - before) / client.dbsize()
    names = [f"online:f{i}" for i in range(FEATURES)]
    measured = {"materialized_rows": client.dbsize(), "materialize_s": took, "bytes_a_row": stored}
    for entities in (1, 100):
        entity_rows = [{"key": key} for key in features["key"].head(entities)]
        seconds = [
            _timed(lambda entity_rows=entity_rows: fs.get_online_features(names, entity_rows).to_dict())[0]  # type: ignore[misc]
            for _ in range(REPEATS + 1)
        ]
        measured[f"read_{entities}_s"] = statistics.median(seconds[1:])
    return measured


def _address(fs: Any) -> dict[str, Any]:
    host, _, rest = fs.config.online_store.connection_string.partition(":")
    port, _, database = rest.partition(",db=")
    return {"host": host, "port": int(port), "db": int(database)}


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = call()
    return time.perf_counter() - start, made


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
