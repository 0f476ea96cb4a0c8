import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from toque.registry import (
    AlreadyExists,
    InvalidInput,
    Journal,
    Lineage,
    NotFound,
    ObjectStore,
    Refused,
    Registry,
    Signature,
    TableSnapshot,
    TensorSpec,
    open_store,
)

SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 1])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[float("nan")]]},
)


def test_a_registered_version_comes_back_whole(store: ObjectStore, model_files: Path, tmp_path: Path):
    reg = Registry(store, actor="ada")
    reg.create_model("flights", description="late or not", tags={"team": "ops"})
    lineage = Lineage(
        run="r1", datasets=[TableSnapshot(name="t", version=3)], features={"v": "d"}, code="c", parent=1
    )
    made = reg.create_version(
        "flights",
        model_files,
        signature=SIGNATURE,
        metrics={"log_loss": 0.5},
        tags={"a": "b"},
        lineage=lineage,
    )
    read = Registry(open_store(store.url), actor="bob").get_version("flights", 1)
    assert read.model_dump_json() == made.model_dump_json()
    assert (read.version, read.author, read.status, read.lineage) == (1, "ada", "READY", lineage)
    assert set(read.files) == {"model.pt2", "model.json", "notes/empty.txt"}
    folder = reg.download("flights", 1, to=tmp_path / "out")
    assert (folder / "model.pt2").read_bytes() == (model_files / "model.pt2").read_bytes()
    assert (folder / "notes/empty.txt").read_bytes() == b""
    assert reg.get_model("flights").tags == {"team": "ops"}
    found = reg.verify("flights")
    assert (found.entries, found.blobs, found.size_bytes) == (2, 3, 7002)


def test_metrics_keep_nan_and_refuse_other_types(reg: Registry, model_files: Path):
    reg.create_model("m")
    version = reg.create_version("m", model_files, metrics={"a": float("nan"), "b": float("-inf"), "c": 1})
    assert str(reg.get_version("m", version.version).metrics) == "{'a': nan, 'b': -inf, 'c': 1.0}"
    with pytest.raises(InvalidInput, match="'a'"):
        reg.create_version("m", model_files, metrics={"a": "x"})  # type: ignore[dict-item]


def test_create_refuses_to_overwrite_a_model_without_exist_ok(reg: Registry):
    reg.create_model("m", description="first")
    with pytest.raises(AlreadyExists, match="'m' was created at"):
        reg.create_model("m")
    assert reg.create_model("m", description="second", exist_ok=True).description == "first"
    assert reg.list_models() == ["m"]


@pytest.mark.parametrize("name", ["", "../m", "a/b", "a b", ".m", "x" * 129, "é", "a..b", "m\n"])
def test_names_that_are_paths_in_disguise_are_refused(reg: Registry, name: str, model_files: Path):
    for call in (reg.create_model, reg.get_model, reg.list_versions, reg.traffic, reg.history, reg.verify):
        with pytest.raises(InvalidInput, match="is not a name"):
            call(name)
    with pytest.raises(InvalidInput):
        reg.create_version(name, model_files)


def test_absent_names_are_not_found(reg: Registry, model_files: Path, tmp_path: Path):
    for call in (reg.get_model, reg.list_versions, reg.traffic, reg.history, reg.verify):
        with pytest.raises(NotFound, match="does not exist"):
            call("nothing")
    with pytest.raises(NotFound, match="create it with create_model"):
        reg.create_version("nothing", model_files)
    assert list(reg.store.list("models/")) == []
    reg.create_model("m")
    assert reg.find_version("m", 1) is None
    assert reg.find_version("m", "champion") is None
    for version in (1, "champion"):
        with pytest.raises(NotFound):
            reg.get_version("m", version)
        with pytest.raises(NotFound):
            reg.download("m", version, tmp_path / "x")


def test_bad_files_are_refused(reg: Registry, tmp_path: Path):
    reg.create_model("m")
    empty, linked = tmp_path / "empty", tmp_path / "linked"
    empty.mkdir()
    linked.mkdir()
    (linked / "secret").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="no files"):
        reg.create_version("m", empty)
    with pytest.raises(InvalidInput, match="link"):
        reg.create_version("m", linked)
    with pytest.raises(InvalidInput, match="neither"):
        reg.create_version("m", tmp_path / "absent")
    assert reg.list_versions("m") == []


def test_a_file_that_changes_while_it_is_stored_is_refused(
    reg: Registry, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg.create_model("m")
    upload = type(reg.store).upload

    def change(self: Any, key: str, path: Path, **rest: Any) -> None:
        upload(self, key, path, **rest)
        path.write_bytes(b"changed")
        os.utime(path, (1, 1))

    monkeypatch.setattr(type(reg.store), "upload", change)
    with pytest.raises(InvalidInput, match="changed while it was stored"):
        reg.create_version("m", model_files)
    assert reg.list_versions("m") == []


def test_code_is_refused_unless_accepted_by_name(reg: Registry, tmp_path: Path):
    reg.create_model("m")
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (folder / "model.pkl").write_bytes(b"")
    (folder / "fine.pt2").write_bytes(b"")
    with zipfile.ZipFile(folder / "state.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    names = ["model.pkl", "state.pt", "weights.bin"]
    with pytest.raises(Refused, match="can execute code"):
        reg.create_version("m", folder)
    with pytest.raises(Refused, match=r"weights\.bin"):
        reg.create_version("m", folder, allow_code=names[:2])
    version = reg.create_version("m", folder, allow_code=names)
    assert sorted(version.code_files) == names
    with pytest.raises(Refused, match="can execute code"):
        reg.download("m", 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    reg.download("m", 1, tmp_path / "out", allow_code=names)


def test_the_same_key_registers_once(reg: Registry, model_files: Path):
    reg.create_model("m")
    first = reg.create_version("m", model_files, key="run-1")
    assert reg.create_version("m", model_files, key="run-1") == first
    assert reg.create_version("m", model_files, key="run-2").version == 2


def test_stored_content_is_not_uploaded_again(
    reg: Registry, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg.create_model("m")
    first = reg.create_version("m", model_files)
    monkeypatch.setattr(type(reg.store), "upload", None)
    second = reg.create_version("m", model_files)
    assert second.files == first.files
    assert second.digest == first.digest


def test_a_version_is_deleted_by_a_tombstone(reg: Registry, model_files: Path, tmp_path: Path):
    reg.create_model("m")
    reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 1)
    with pytest.raises(Refused, match="alias 'champion' points to it"):
        reg.delete_version("m", 1)
    reg.delete_alias("m", "champion")
    assert reg.delete_version("m", 1, reason="stale").status == "DELETED"
    reg.delete_version("m", 1)
    assert reg.list_versions("m") == []
    assert reg.get_version("m", 1).status == "DELETED"
    with pytest.raises(Refused, match="was deleted"):
        reg.download("m", 1, tmp_path / "x")
    with pytest.raises(Refused, match="DELETED"):
        reg.set_alias("m", "champion", 1)
    assert reg.create_version("m", model_files).version == 2


def test_the_newest_entries_of_a_history_are_read_without_the_others(
    reg: Registry, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg.create_model("m")
    for _ in range(6):
        reg.create_version("m", model_files)
    whole, read = reg.history("m"), []
    find = Journal.find
    monkeypatch.setattr(Journal, "find", lambda self, number: read.append(number) or find(self, number))
    assert reg.history("m", last=2) == whole[-2:]
    assert len(set(read)) <= 3  # two entries, and the place after the last
    assert reg.history("m", last=100) == whole
    with pytest.raises(NotFound):
        reg.history("nothing", last=2)


def test_tags_change_and_go(reg: Registry, model_files: Path):
    reg.create_model("m")
    reg.create_version("m", model_files, tags={"a": "1", "b": "2"})
    assert reg.set_version_tags("m", 1, {"a": None, "c": "3"}).tags == {"b": "2", "c": "3"}
    entries = len(reg.history("m"))
    reg.set_version_tags("m", 1, {"c": "3"})
    assert len(reg.history("m")) == entries
    state = reg.set_model_tags("m", {"owner": "ops"}, description="new")
    assert (state.tags, state.description) == ({"owner": "ops"}, "new")


def test_progress_counts_every_byte(reg: Registry, model_files: Path, tmp_path: Path):
    reg.create_model("m")
    seen: list[int] = []
    reg.create_version("m", model_files, on_progress=seen.append)
    assert sum(seen) == 7002
    reg.download("m", 1, tmp_path / "x", on_progress=seen.append)
    assert sum(seen) == 2 * 7002
    (model_files / "same.pt2").write_bytes(b"weights" * 1000)
    reg.create_version("m", model_files, on_progress=seen.append)  # nothing is sent, and the bar is full
    assert sum(seen) == 3 * 7002 + 7000


def test_a_registry_in_the_name_of_another_reads_only_what_is_new(
    reg: Registry, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg.create_model("m")
    for _ in range(3):
        reg.create_version("m", model_files)
    shared = Registry(reg.store, actor="shared")
    assert len(shared.get_model("m").versions) == 3
    read: list[str] = []
    find = type(reg.store).find
    monkeypatch.setattr(type(reg.store), "find", lambda store, key: (read.append(key), find(store, key))[1])
    for number, actor in enumerate(("ada", "bea"), 4):
        own = shared.as_actor(actor)
        assert len(own.get_model("m").versions) == 3
        assert read == [f"models/m/journal/entries/{number:08d}.json"] * 2  # by both: nothing is new
        read.clear()
        own.set_model_tags("m", {"by": actor})
        shared.get_model("m")
        read.clear()
    assert [entry.actor for entry in Journal(reg.store, "models/m/journal", actor="x").entries(4)] == [
        "ada",
        "bea",
    ]
    assert dict(shared.get_model("m").tags) == {"by": "bea"}
