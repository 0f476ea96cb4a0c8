"""Random histories of vectors with what a search must find in them, computed from the definition in words."""

import itertools
import math
import random
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from toque.featurestore import Entity, FeatureView, Field, Int64, Metric, String, Vector, VectorIndex

START = datetime(2013, 1, 1, 23, 59, 59, 999_990, tzinfo=UTC)  # midnight is among the moments
MICRO = timedelta(microseconds=1)
MOMENTS = 16
Row = dict[str, Any]

case, doc = Entity("case", dtype=Int64), Entity("doc")
FIELDS = [Field("v", Vector(2)), Field("lang", String), Field("year", Int64)]
METRICS = {"far": Metric.L2, "angle": Metric.COSINE, "inner": Metric.DOT}
VIEWS = {
    name: FeatureView(
        name,
        [case, doc],
        FIELDS,
        ttl=4 * MICRO if name == "angle" else None,
        indexes=[VectorIndex("v", metric)],
    )
    for name, metric in METRICS.items()
}


def history(number: int, rng: random.Random) -> list[Row]:
    """Draw rows of a few documents: changes, corrections, rows that come late, and vectors that are taken back."""
    return [
        {
            "case": number,
            "doc": rng.choice("abcdef"),
            "v": rng.choice([None, [0.0, 0.0]])
            if rng.random() < 0.2
            else [rng.randrange(-3, 4), rng.random()],
            "lang": rng.choice([None, "de", "en"]),
            "year": rng.choice([None, 2019, 2020, 2021]),
            "event_timestamp": START + rng.randrange(MOMENTS) * MICRO,
            "created_timestamp": START + rng.randrange(MOMENTS) * MICRO,
        }
        for _ in range(rng.randrange(25))
    ]


def a_filter(rng: random.Random) -> dict[str, Any]:
    """Draw conditions on the other columns."""
    lang = rng.choice([{}, {"lang": "de"}, {"lang": ["de", "en"]}, {"lang": None}, {"lang": []}])
    year = rng.choice([{}, {"year": {"ge": 2020}}, {"year": {"gt": 2019, "lt": 2021}}, {"year": 2019}])
    return {**lang, **year}


def meets(row: Row, where: dict[str, Any]) -> bool:
    for column, wanted in where.items():
        value = row[column]
        if wanted is None:
            met = value is None
        elif isinstance(wanted, dict):
            bounds = {"ge": lambda a, b: a >= b, "gt": lambda a, b: a > b, "lt": lambda a, b: a < b}
            met = value is not None and all(bounds[how](value, bound) for how, bound in wanted.items())
        else:
            met = value in (wanted if isinstance(wanted, list) else [wanted])
        if not met:
            return False
    return True


def content(row: Row) -> bytes:
    """Pack a row's content as docs/online-store.md says; it decides where both times are equal."""
    nulls = sum((row[name] is None) << i for i, name in enumerate(("v", "lang", "year")))
    text = (row["lang"] or "").encode()
    return struct.pack("<BffIq", nulls, *(row["v"] or (0, 0)), len(text), row["year"] or 0) + text


def then(rows: list[Row], at: datetime, ttl: timedelta | None) -> list[Row]:
    """Rows of the documents as they were known at a time."""
    found = []
    for _, group in itertools.groupby(sorted(rows, key=lambda r: r["doc"]), key=lambda r: r["doc"]):
        known = [r for r in group if r["event_timestamp"] <= at and r["created_timestamp"] <= at]
        if known:
            best = max(known, key=lambda r: (r["event_timestamp"], r["created_timestamp"], content(r)))
            if ttl is None or at - best["event_timestamp"] <= ttl:
                found.append(best)
    return found


def distance(a: list[float], b: list[float], metric: Metric) -> float:
    """Distance by the metric's definition, of float32 values."""
    a, b = ([struct.unpack("<f", struct.pack("<f", x))[0] for x in v] for v in (a, b))
    inner = sum(x * y for x, y in zip(a, b, strict=True))
    if metric is Metric.L2:
        return math.dist(a, b)
    if metric is Metric.DOT:
        return -inner
    lengths = math.hypot(*a) * math.hypot(*b)
    return 1 - inner / lengths if lengths else 1.0


def expected(
    rows: list[Row],
    query: list[float],
    metric: Metric,
    *,
    at: datetime,
    ttl: timedelta | None,
    **options: Any,
) -> list[tuple[float, str]]:
    """The `k` nearest as (distance, doc). options: k, where, and `other_than` a doc."""
    candidates = [
        r
        for r in then(rows, at, ttl)
        if r["v"] is not None and meets(r, options["where"]) and r["doc"] != options.get("other_than")
    ]
    found = sorted((distance(r["v"], query, metric), r["doc"]) for r in candidates)
    return found[: options["k"]]
