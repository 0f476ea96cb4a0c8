"""Audit, copy, backup and restore of projects with declared sources: every journal of a feature store is folded as what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from toque.featurestore import (
    BatchSource,
    CsvFiles,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    Vector,
    VectorIndex,
)
from toque.functions.maintenance.backup import back_up, restore
from toque.ray_apps.cli.platform_folds import platform_fold
from toque.registry import ObjectStore, open_store
from toque.registry.history import audit
from toque.registry.journal import fold, snapshot
from toque.registry.transfer import copy_store

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LOADS = 3


def load_a_source_often(store: ObjectStore, folder: Path, *, project: str, source: str) -> None:
    """Define a view of a source and a view with an index, and load and index them several times."""
    folder.mkdir(parents=True)
    house = Entity("house", dtype=Int64)
    events = BatchSource(
        source,
        CsvFiles(f"{folder}/*.csv"),
        [Field("house", Int64), Field("area", Float64)],
        timestamp="sold",
    )
    areas = FeatureView("areas", [house], [Field("area", Float64)], events=events)
    vectors = FeatureView("docs", [house], [Field("v", Vector(4))], indexes=[VectorIndex("v")])
    features = FeatureStore(store, project=project, clock=lambda: NOW)
    features.apply([areas, vectors])
    for number in range(LOADS):
        (folder / f"{number}.csv").write_text(
            f"house,area,sold\n{number},{number}.5,2024-04-0{1 + number}T00:00:00Z\n"
        )
        assert features.source_table(source).load(dict.__getitem__)
        features.refresh_view(areas)
        at = pa.array([NOW - timedelta(days=LOADS - number)] * 8)
        values = np.random.default_rng(number).standard_normal((8, 4)).astype(np.float32)
        rows = {"house": pa.array(range(8)), "v": pa.FixedSizeListArray.from_arrays(values.reshape(-1), 4)}
        features.offline.write(vectors, pa.table({**rows, "event_timestamp": at, "created_timestamp": at}))
        features.refresh_index(vectors, "v")


@pytest.mark.parametrize(
    ("name", "snapshots"),
    [("houses", False), ("houses", True), ("definitions", True), ("sources", True), ("indexes", True)],
)
def test_a_project_with_a_declared_source_is_audited_copied_and_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, snapshots: bool
) -> None:
    if snapshots:
        monkeypatch.setattr(fold, "SNAPSHOT_EVERY", 2)
    store = open_store(f"file://{tmp_path}/store")
    load_a_source_often(store, tmp_path / "data", project=name, source=name)
    assert (store.find(snapshot.key(f"features/{name}/sources/{name}")) is not None) == snapshots
    assert audit(store, fold_of=platform_fold).findings == ()
    targets = {place: open_store(f"file://{tmp_path}/{place}") for place in ("copy", "backup", "restored")}
    assert copy_store(store, targets["copy"], fold_of=platform_fold).findings == ()
    for _ in range(2):
        written = back_up(store, None, targets["backup"], fold_of=platform_fold).copy_report
        assert written is not None
        assert written.findings == ()
    restored = restore(targets["backup"], targets["restored"], fold_of=platform_fold).copy_report
    assert restored is not None
    assert restored.findings == ()


@pytest.mark.parametrize("journal", ["sources/houses", "indexes/docs/v"])
def test_a_changed_snapshot_of_a_feature_store_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    monkeypatch.setattr(fold, "SNAPSHOT_EVERY", 1)
    store = open_store(f"file://{tmp_path}/store")
    load_a_source_often(store, tmp_path / "data", project="houses", source="houses")
    path = f"features/houses/{journal}"
    stored = snapshot.parse(store.get(snapshot.key(path)), store.audit_keys, path)
    state = json.loads(json.dumps(stored.state).replace('"rows": ', '"rows": 9'))
    store.put(snapshot.key(path), replace(stored, state=state).to_bytes(store.audit_keys, path))
    (problem,) = audit(store, fold_of=platform_fold).findings
    assert problem.startswith(f"{path}: snapshot is not the state")
