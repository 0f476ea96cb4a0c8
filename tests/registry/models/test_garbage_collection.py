from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toque.registry import (
    ObjectStore,
    Registry,
)


def test_garbage_is_deleted_and_used_files_stay(folder_store: ObjectStore, model_files: Path, tmp_path: Path):
    now = [datetime(2013, 1, 1, tzinfo=UTC)]
    reg = Registry(folder_store, actor="ada", clock=lambda: now[0])
    reg.create_model("m")
    reg.create_version("m", model_files)
    (model_files / "model.pt2").write_bytes(b"two")
    reg.create_version("m", model_files)
    assert reg.collect_garbage() == []
    assert len(reg.history("m")) == 3
    orphan = "models/m/blobs/00000000/" + "0" * 64
    folder_store.put(orphan, b"left by a killed registration")
    assert reg.collect_garbage() == [orphan]
    reg.delete_version("m", 1)
    assert reg.collect_garbage(grace=timedelta(hours=1)) == []
    now[0] += timedelta(hours=2)
    assert len(reg.collect_garbage(grace=timedelta(hours=1))) == 1
    reg.verify("m")
    assert reg.download("m", 2, tmp_path / "x").is_dir()


def test_a_registration_survives_a_concurrent_collection(
    folder_store: ObjectStore, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg, collector = Registry(folder_store, actor="ada"), Registry(folder_store, actor="gc")
    reg.create_model("m")
    upload, uploads = type(folder_store).upload, []

    def then_collect(self: Any, key: str, path: Path, **rest: Any) -> None:
        upload(self, key, path, **rest)
        uploads.append(key)
        if len(uploads) == 3:
            assert len(collector.collect_garbage()) == 3

    monkeypatch.setattr(type(folder_store), "upload", then_collect)
    version = reg.create_version("m", model_files)
    assert len(uploads) == 6
    assert {blob.generation for blob in version.files.values()} == {1}
    assert reg.verify("m").blobs == 3


def test_a_stalled_collector_deletes_nothing_that_was_registered_since(
    folder_store: ObjectStore, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg, collector = Registry(folder_store, actor="ada"), Registry(folder_store, actor="gc")
    reg.create_model("m")
    reg.create_version("m", model_files)
    reg.delete_version("m", 1)
    delete = type(folder_store).delete

    def stall(self: Any, key: str) -> None:
        if not reg.list_versions("m"):
            reg.create_version(
                "m", model_files
            )  # the same content, while the collector is about to delete it
        delete(self, key)

    monkeypatch.setattr(type(folder_store), "delete", stall)
    assert len(collector.collect_garbage(grace=timedelta(0))) == 3
    assert reg.verify("m").blobs == 3
