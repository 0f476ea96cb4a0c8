"""Five hundred cases of training sets, with results computed from the definition in words.

They share one store: the number of its case is a join key, so no case sees another's rows, and files, blocks and
partitions have rows of all of them.
"""

import random
import struct
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from toque.featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    String,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.registry import open_store

CASES = 500
START = datetime(2013, 1, 1, 23, 59, 59, 999_994, tzinfo=UTC)  # midnight is among the moments
MICRO = timedelta(microseconds=1)
Row = dict[str, Any]

case, plane = Entity("case", dtype=Int64), Entity("plane")
FIELDS = [Field("x", Float64), Field("s", String)]
VIEWS = [
    FeatureView("lasting", [case, plane], FIELDS),
    FeatureView("brief", [case, plane], FIELDS, ttl=4 * MICRO),
    FeatureView("whole", [case], FIELDS, ttl=1 * MICRO),
]
SERVICE = FeatureService("all", [view.with_name(view.name) for view in VIEWS])


def a_case(number: int) -> tuple[list[Row], dict[str, list[Row]]]:
    """Draw entity rows (some repeated, some without rows) and rows of each view, within a dozen microseconds."""
    rng = random.Random(number)

    def moment() -> datetime:
        return START + rng.randrange(13) * MICRO

    entities = [
        {"case": number, "plane": rng.choice(["p", "q", "nobody", None]), "event_timestamp": moment()}
        for _ in range(rng.randrange(1, 7))
    ]
    entities += rng.sample(entities, rng.randrange(2))
    rows = {
        view.name: [
            {
                "case": number,
                "plane": rng.choice(["p", "q"]),
                "x": rng.choice([None, 0.5, 1.5, -2.0]),
                "s": rng.choice([None, "", "u", "vv"]),
                "event_timestamp": moment(),
                "created_timestamp": moment(),
            }
            for _ in range(rng.randrange(14))
        ]
        for view in VIEWS
    }
    return entities, rows


def content(row: Row) -> bytes:
    """Pack a row's content as docs/online-store.md says; it decides where both times are equal."""
    nulls = (row["x"] is None) + 2 * (row["s"] is None)
    text = (row["s"] or "").encode()
    return struct.pack("<BdI", nulls, row["x"] or 0.0, len(text)) + text


def oracle(view: FeatureView, entity: Row, rows: list[Row], *, as_known: bool) -> tuple[Any, Any]:
    """Find among the rows of its keys with t - ttl <= event <= t, the one latest by event, then by created."""
    t = entity["event_timestamp"]
    keys = [key.name for key in view.join_keys]
    seen = [
        r
        for r in rows
        if all(entity[k] is not None and r[k] == entity[k] for k in keys)
        and r["event_timestamp"] <= t
        and (view.ttl is None or r["event_timestamp"] >= t - view.ttl)
        and (not as_known or r["created_timestamp"] <= t)
    ]
    if not seen:
        return None, None
    best = max(seen, key=lambda r: (r["event_timestamp"], r["created_timestamp"], content(r)))
    return best["x"], best["s"]


def expected(entities: list[Row], rows: dict[str, list[Row]], *, as_known: bool) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = defaultdict(list)
    for entity in entities:
        for view in VIEWS:
            x, s = oracle(view, entity, rows[view.name], as_known=as_known)
            columns[f"{view.name}__x"].append(x)
            columns[f"{view.name}__s"].append(s)
    return columns


class Cases:
    """All cases together: entity rows, view rows, and expected results for both meanings of time."""

    def __init__(self) -> None:
        self.entities: list[Row] = []
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.expected: dict[bool, dict[str, list[Any]]] = {True: defaultdict(list), False: defaultdict(list)}
        for number in range(CASES):
            entities, rows = a_case(number)
            self.entities += entities
            for name, of_view in rows.items():
                self.rows[name] += of_view
            for as_known, wanted in self.expected.items():
                for column, values in expected(entities, rows, as_known=as_known).items():
                    wanted[column] += values

    def entity_table(self, blocks: int) -> pa.Table:
        schema = pa.schema([("case", pa.int64()), ("plane", pa.string()), ("event_timestamp", TIMESTAMP)])
        table = pa.Table.from_pylist(self.entities, schema=schema)
        size = -(-table.num_rows // blocks)
        return pa.concat_tables([table.slice(at, size) for at in range(0, table.num_rows, size)])


def store_of(cases: Cases, folder: Path, *, files: int, seed: int) -> FeatureStore:
    """Build a store that has the rows in random order, spread over several appends."""
    fs = FeatureStore(open_store(folder.as_uri()), clock=lambda: START)
    fs.apply([SERVICE])
    rng = random.Random(seed)
    for view in VIEWS:
        rows = rng.sample(cases.rows[view.name], len(cases.rows[view.name]))
        shares = [rows[i::files] for i in range(files)]
        for share in rng.sample(shares, files):
            wanted = [{k: v for k, v in r.items() if k != "plane" or plane in view.entities} for r in share]
            fs.write_offline(view, wanted)
    return fs


def features_of(table: pa.Table) -> dict[str, list[Any]]:
    return table.select(SERVICE.columns).to_pydict()
