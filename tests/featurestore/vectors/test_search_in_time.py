"""Searches at a time against brute force over random histories: changes, corrections, ttl, filters, erasure, expiry."""

import random
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.featurestore.vectors.histories import (
    METRICS,
    MICRO,
    MOMENTS,
    START,
    VIEWS,
    Row,
    a_filter,
    expected,
    history,
    then,
)
from toque.featurestore import FeatureStore, Neighbours, UnknownDefinition, compact
from toque.featurestore.vectors import FOLLOWERS, following
from toque.registry import open_store
from toque.registry.store import remove_rows

FEW = 40
AFTER = START + MOMENTS * MICRO


class Cases:
    """Histories in one store, each under the number of its case, written in several files at random."""

    def __init__(self, folder: Path, cases: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fs = FeatureStore(open_store(folder.as_uri()), project=f"p{seed}", clock=lambda: AFTER)
        self.fs.apply(list(VIEWS.values()))
        self.rows: dict[str, dict[int, list[Row]]] = {name: defaultdict(list) for name in VIEWS}
        self.left = {name: [r for n in range(cases) for r in history(n, self.rng)] for name in VIEWS}
        self.cases = cases

    def write(self, share: float) -> None:
        """Write a share of the rows that are left, in random order."""
        for name, left in self.left.items():
            self.rng.shuffle(left)
            taken = [left.pop() for _ in range(round(len(left) * share))]
            for row in taken:
                self.rows[name][row["case"]].append(row)
            if taken:
                self.fs.write_offline(name, pa.Table.from_pylist(taken).cast(_schema()))

    def check(self, *, max_age_s: float = 0) -> None:
        """Search every case at a time of its own, by a vector or by a stored document."""
        for number in range(self.cases):
            for name, metric in METRICS.items():
                self._check_case(number, name, metric, max_age_s)

    def _check_case(self, number: int, name: str, metric: Any, max_age_s: float) -> None:
        rng, rows, ttl = self.rng, self.rows[name][number], VIEWS[name].ttl
        at = START + (rng.randrange(MOMENTS + 2) - 1) * MICRO
        where, k = a_filter(rng), rng.randrange(1, 5)
        options: dict[str, Any] = {"k": k, "where": where}
        query: Any = [rng.randrange(-2, 3), 0.5]
        asked: dict[str, Any] = {"vector": query}
        with_vector = [r for r in then(rows, at, ttl) if r["v"]]
        if with_vector and rng.random() < 0.3:
            stored = rng.choice(with_vector)
            query, options["other_than"] = stored["v"], stored["doc"]
            asked = {"key": {"case": number, "doc": stored["doc"]}}
        found = self.fs.search(
            name, **asked, k=k, where={"case": number, **where}, at=at, max_age_s=max_age_s
        )
        wanted = expected(rows, query, metric, at=at, ttl=ttl, **options)
        assert_same(found, wanted)


def assert_same(found: Neighbours, wanted: list[tuple[float, str]]) -> None:
    """Distances agree to rounding, and documents wherever distances differ by more than that."""
    distances = [each.distance for each in found.found]
    assert distances == pytest.approx([d for d, _ in wanted], abs=1e-9)
    clear = [i for i, d in enumerate(distances) if sum(abs(d - other) < 1e-9 for other in distances) == 1]
    tied_out = len(wanted) and len(distances) - 1  # the last may be tied with one that was left out
    assert [found.found[i].key["doc"] for i in clear if i != tied_out] == [
        wanted[i][1] for i in clear if i != tied_out
    ]


def _schema() -> pa.Schema:
    return pa.schema(
        [
            ("case", pa.int64()),
            ("doc", pa.string()),
            ("v", pa.list_(pa.float64())),
            ("lang", pa.string()),
            ("year", pa.int64()),
            ("event_timestamp", pa.timestamp("us", "UTC")),
            ("created_timestamp", pa.timestamp("us", "UTC")),
        ]
    )


@pytest.mark.parametrize(
    "cases", [pytest.param(FEW), pytest.param(500, marks=[pytest.mark.proof, pytest.mark.timeout(1800)])]
)
def test_a_search_finds_what_brute_force_finds(tmp_path: Path, cases: int) -> None:
    made = Cases(tmp_path, cases, seed=cases)
    for share in (0.5, 0.3, 1.0):  # the second and third time only new files are read
        made.write(share)
        made.check(max_age_s=3600)  # a store sees its own writes at once


class Documents:
    """All rows of some documents, as an erasure chooses them."""

    def __init__(self, docs: str) -> None:
        self.docs = docs

    def columns(self, _: pa.Schema) -> list[str]:
        return ["doc"]

    def mask(self, rows: pa.Table) -> pa.Array:
        return pc.is_in(rows.column("doc"), value_set=pa.array(list(self.docs)))

    def mentions(self, _: str) -> bool:
        return False


def test_what_was_erased_is_found_at_no_time(tmp_path: Path) -> None:
    made = Cases(tmp_path, FEW, seed=7)
    made.write(0.7)
    made.check()
    for name in VIEWS:
        remove_rows(made.fs.offline_table(name), Documents("ab"), before=lambda _: None)
        for rows in made.rows[name].values():
            rows[:] = [row for row in rows if row["doc"] not in "ab"]
    made.check()
    made.write(1.0)
    made.check()


def test_compaction_changes_nothing_and_reads_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Cases(tmp_path, 8, seed=3)
    for share in (0.3, 0.5):
        made.write(share)
    made.check()
    read: list[int] = []
    scan = following.scan
    monkeypatch.setattr(
        following,
        "scan",
        lambda version, files, schema: read.append(len(files)) or scan(version, files, schema),
    )
    assert compact(made.fs, "far").removed
    made.check()
    assert read == []
    made.write(1.0)
    made.check()
    assert read
    assert all(count <= 2 for count in read)  # the files of the write, and none that compaction made


def test_a_key_without_a_vector_then_cannot_be_asked_for(tmp_path: Path) -> None:
    made = Cases(tmp_path, 1, seed=5)
    made.fs.write_offline(
        "far",
        [
            {
                "case": 1,
                "doc": "a",
                "v": [1.0, 1.0],
                "lang": None,
                "year": None,
                "event_timestamp": START + MICRO,
            },
        ],
    )
    with pytest.raises(UnknownDefinition, match=r"no vector 'v' of \(1, 'a'\) at that time"):
        made.fs.search("far", key={"case": 1, "doc": "a"}, at=START)
    found = made.fs.search("far", key={"case": 1, "doc": "a"}, at=AFTER + timedelta(days=1))
    assert found.found == ()
    assert found.table_version is not None
    FOLLOWERS.expire(made.fs.place, "far")
