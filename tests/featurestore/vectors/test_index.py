"""Indexes: what they find beside exact search, how they are kept up to date, and what a kill or a lost file leaves."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tests.conditions.faults import FragileStore, KilledError
from tests.featurestore.vectors.test_search_in_time import Cases
from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Int64,
    InvalidDefinition,
    Metric,
    RecallTooLow,
    String,
    Vector,
    VectorIndex,
    compact,
)
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.vectors import opened, searching
from toque.featurestore.vectors.builds import Loader
from toque.featurestore.vectors.nearest import codes_for, lists_for
from toque.registry import open_store
from toque.registry.journal import Journal

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
SIZE = 16
view = FeatureView(
    "docs",
    [Entity("doc", dtype=Int64)],
    [Field("v", Vector(SIZE)), Field("lang", String)],
    ttl=timedelta(days=30),
    indexes=[VectorIndex("v")],
)


@pytest.fixture(autouse=True)
def use_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use the lists for few rows too, and keep its copies apart."""
    monkeypatch.setattr(searching, "EXACT_ROWS", 50)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def fs(tmp_path: Path) -> FeatureStore:
    made = FeatureStore(open_store((tmp_path / "store").as_uri()), clock=lambda: NOW)
    made.apply([view])
    return made


def clustered(count: int, seed: int) -> Any:
    """Vectors around forty centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, SIZE))
    made = centres[rng.integers(0, 40, count)] + 0.4 * rng.standard_normal((count, SIZE))
    return made.astype(np.float32)


def rows(first: int, count: int, *, seed: int, hours: float = 24) -> pa.Table:
    at = NOW - timedelta(hours=hours)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(clustered(count, seed).reshape(-1)), SIZE)
    langs = ["de" if i % 2 else "en" for i in range(count)]
    numbers = pa.array(range(first, first + count))
    times = pa.array([at] * count)
    return pa.table(
        {"doc": numbers, "v": vectors, "lang": langs, "event_timestamp": times, "created_timestamp": times}
    )


def recall(fs: FeatureStore, **options: Any) -> float:
    """Share of the ten nearest of fifty queries that a search by the index finds."""
    hits = 0
    for query in clustered(50, 7):
        found = fs.search(view, vector=query, **options)
        exact = fs.search(view, vector=query, exact=True, **options)
        assert not found.exact
        assert exact.exact
        near = {key["doc"]: each.distance for key, each in zip(exact.keys, exact.found, strict=True)}
        hits += sum(near.get(each.key["doc"]) == each.distance for each in found.found)
    return hits / 500


def test_an_index_finds_nearly_all_with_and_without_a_filter(fs: FeatureStore) -> None:
    fs.write_offline(view, rows(0, 3000, seed=1))
    build = fs.refresh_index(view)
    assert build is not None
    assert (build.rows, build.indexed, build.sampled) == (3000, 3000, 200)
    assert build.recall >= 0.95
    assert recall(fs) >= 0.95
    assert recall(fs, where={"lang": "de"}) >= 0.95
    assert fs.search(
        view, vector=clustered(1, 3)[0], where={"doc": [1, 2]}
    ).exact  # few rows are compared faster
    assert fs.search(view, vector=clustered(1, 3)[0], at=NOW - timedelta(seconds=1)).exact  # before the build
    assert fs.refresh_index(view) is None


def test_a_refresh_reads_only_new_rows_and_searches_see_them_before_it(
    fs: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.write_offline(view, rows(0, 2000, seed=1))
    first = fs.refresh_index(view)
    assert first is not None
    fs.write_offline(view, rows(5000, 300, seed=2, hours=2))
    fs.write_offline(
        view, rows(100, 200, seed=3, hours=1)
    )  # newer vectors of documents that are in the index
    changed = fs.search(view, vector=rows(100, 200, seed=3)["v"][0].as_py(), k=1)
    assert (changed.keys, changed.index) == ([{"doc": 100}], first.number)
    assert changed.found[0].distance == pytest.approx(0, abs=1e-12)
    assert recall(fs) >= 0.95
    compact(fs, view)
    read: list[int] = []
    monkeypatch.setattr(OfflineStore, "batches", _counting(OfflineStore.batches, read))
    second = fs.refresh_index(view)
    assert second is not None
    assert sum(read) == 500
    assert (second.number, second.rows) == (first.number + 1, 2500)
    assert recall(fs) >= 0.95


def _counting(batches: Callable[..., Iterator[Any]], read: list[int]) -> Callable[..., Iterator[Any]]:
    def counted(*given: Any, **options: Any) -> Iterator[Any]:
        for rows, ended in batches(*given, **options):
            read.append(rows.num_rows)
            yield rows, ended

    return counted


def test_rows_that_go_take_the_index_with_them_until_the_next_refresh(fs: FeatureStore) -> None:
    fs.write_offline(view, rows(0, 1000, seed=1))
    fs.write_offline(view, rows(1000, 500, seed=2, hours=24 * 20))
    assert fs.refresh_index(view) is not None
    DeltaTable(fs.offline_table(view).uri).delete("doc < 500")
    query = rows(0, 1, seed=1)["v"][0].as_py()
    found = fs.search(view, vector=query, max_age_s=0)
    assert found.exact
    assert min(key["doc"] for key in found.keys) >= 500
    build = fs.refresh_index(view)
    assert build is not None
    assert build.rows == 1000
    found = fs.search(view, vector=query, max_age_s=0)
    assert (found.exact, found.index) == (False, build.number)
    assert min(key["doc"] for key in found.keys) >= 500
    assert fs.drop_indexes("docs") == 1
    assert fs.drop_indexes("docs") == 0
    assert fs.search(view, vector=query, max_age_s=0).exact
    assert not list(fs._store.list("features/default/indexes/docs/v/files/"))


def test_an_index_that_finds_too_little_is_refused_and_searches_stay_exact(
    fs: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = FeatureView(
        "docs", view.entities, view.schema, ttl=view.ttl, indexes=[VectorIndex("v", least_recall=1)]
    )
    fs.apply([strict])
    monkeypatch.setattr(opened, "SHARES", (0.01,))
    monkeypatch.setattr(opened, "OVERSAMPLED", 1)
    fs.write_offline("docs", rows(0, 3000, seed=1))
    with pytest.raises(RecallTooLow, match="of the ten nearest, less than 1; lower least_recall"):
        fs.refresh_index("docs")
    assert fs.search("docs", vector=clustered(1, 3)[0]).exact
    plain = FeatureView("plain", view.entities, view.schema)
    fs.apply([plain])
    with pytest.raises(InvalidDefinition, match=r"declares no index over 'v'; give it indexes="):
        fs.refresh_index(plain)


def test_a_vector_has_about_96_codes_each_of_a_whole_number_of_its_numbers() -> None:
    assert [codes_for(length) for length in (1, 16, 97, 192, 384, 385, 1536)] == [1, 16, 97, 96, 96, 385, 384]


def test_a_changed_definition_waits_for_its_own_build(fs: FeatureStore) -> None:
    fs.write_offline(view, rows(0, 500, seed=1))
    assert fs.refresh_index(view) is not None
    assert not fs.search(view, vector=clustered(1, 3)[0]).exact
    other = FeatureView(
        "docs", view.entities, view.schema, ttl=view.ttl, indexes=[VectorIndex("v", Metric.L2)]
    )
    fs.apply([other])
    assert fs.search(other, vector=clustered(1, 3)[0], max_age_s=0).exact
    build = fs.refresh_index(other)
    assert build is not None
    assert build.metric is Metric.L2
    assert not fs.search(other, vector=clustered(1, 3)[0], max_age_s=0).exact


def loaded_lists(fs: FeatureStore, of: FeatureView) -> Any:
    found = Loader().newest(fs.builds("docs", "v"), of, of.indexes[0])
    assert found is not None
    return found.lists


def test_lists_that_were_made_for_few_of_the_rows_are_made_anew(fs: FeatureStore) -> None:
    fs.write_offline(view, rows(0, 500, seed=1))
    fs.refresh_index(view)
    fs.write_offline(view, rows(500, 100, seed=2))
    fs.refresh_index(view)
    assert loaded_lists(fs, view).count == lists_for(500)
    fs.write_offline(view, rows(600, 2400, seed=3))
    fs.refresh_index(view)
    assert loaded_lists(fs, view).count == lists_for(3000)
    assert recall(fs) >= 0.95


def test_lists_that_find_too_little_of_other_vectors_that_came_are_made_anew(fs: FeatureStore) -> None:
    far = FeatureView("docs", view.entities, view.schema, ttl=view.ttl, indexes=[VectorIndex("v", Metric.L2)])
    fs.apply([far])
    fs.write_offline(far, rows(0, 3000, seed=1))
    assert fs.refresh_index(far) is not None
    moved = rows(3000, 2000, seed=2)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(100 + clustered(2000, 2).reshape(-1)), SIZE)
    fs.write_offline(far, moved.set_column(1, "v", vectors))
    build = fs.refresh_index(far)
    assert build is not None
    assert loaded_lists(fs, far).count == lists_for(5000)
    assert build.recall >= 0.95


def test_a_graph_as_indexes_were_before_is_left_aside_and_replaced_by_the_next_refresh(
    fs: FeatureStore,
) -> None:
    fs.write_offline(view, rows(0, 500, seed=1))
    prefix = "features/default/indexes/docs/v"
    file = f"{prefix}/files/00000000-abc/graph.faiss"
    fs._store.put(file, b"a graph")
    blob = {"sha256": "0" * 64, "size": 7, "generation": 0}
    before = {
        "number": 0,
        "token": "abc",
        "files": {"graph.faiss": blob},
        "metric": "cosine",
        "semantics": "s",
    }
    before |= {"table_version": 0, "paths": [], "rows": 500, "nodes": 500, "built_at": NOW.isoformat()}
    before |= {"breadth": 64, "recall": 0.99, "sampled": 200}
    Journal(fs._store, prefix, actor="a", clock=lambda: NOW).append({"built": before}, at=0)
    builds = fs.builds("docs", "v")
    assert builds.newest() is None
    assert fs.search(view, vector=clustered(1, 3)[0], max_age_s=0).exact
    build = fs.refresh_index(view)
    assert build is not None
    assert (build.number, build.indexed) == (1, 500)
    assert not fs.search(view, vector=clustered(1, 3)[0], max_age_s=0).exact
    fs.write_offline(view, rows(1000, 1, seed=2))
    assert fs.refresh_index(view) is not None
    assert fs._store.find(file) is None  # as every build but the last two


class _Fragile(FragileStore):
    """A store whose process dies at one of its writes, uploads among them."""

    def upload(self, key: str, source: Any, **options: Any) -> None:
        self._write(lambda *given: super(_Fragile, self).upload(*given, **options), key, source)


def test_killed_at_any_write_the_index_before_stays_and_a_refresh_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "SAMPLED", 5)
    store = _Fragile(tmp_path / "fragile")
    fs = FeatureStore(store, project="fragile", clock=lambda: NOW)
    fs.apply([view])
    fs.write_offline(view, rows(0, 100, seed=1))
    build = fs.refresh_index(view)
    assert build is not None
    for number in range(1, 40):
        fs.write_offline(view, rows(1000 + number, 1, seed=number))
        store.writes, store.fatal = 0, number
        try:
            fs.refresh_index(view)
        except KilledError:
            store.fatal = 0
        else:
            break
        other = FeatureStore(store, project="fragile", clock=lambda: NOW)
        assert other.search(view, vector=clustered(1, number)[0], k=1, max_age_s=0).keys == [
            {"doc": 1000 + number}
        ]
        assert other.refresh_index(view) is not None or number > 5
        assert other.search(view, vector=clustered(1, number)[0], k=1, max_age_s=0).keys == [
            {"doc": 1000 + number}
        ]
    assert number > 5
    store.fatal = 0
    fs.write_offline(view, rows(5000, 1, seed=77))
    fs.refresh_index(view)
    folders = {key.split("/")[-2] for key in store.list("features/fragile/indexes/docs/v/files/")}
    assert len(folders) <= 3  # the last two builds, and at most one that was killed since


def test_histories_are_found_the_same_with_an_index(tmp_path: Path) -> None:
    made = Cases(tmp_path / "cases", 20, seed=11)
    for share in (0.4, 0.5, 1.0):
        made.write(share)
        for name in ("far", "angle", "inner"):
            made.fs.refresh_index(name)
        made.check()
        made.write(0.3)
        made.check()
