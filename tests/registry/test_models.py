import os
import zipfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from registry import (
    AlreadyExists,
    Damaged,
    Dependent,
    InvalidInput,
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


def ticking() -> Any:
    """A clock that is an hour later each time."""
    times = iter(datetime(2013, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(10_000))
    return lambda: next(times)


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


def test_metrics_keep_nan_and_refuse_what_is_no_number(reg: Registry, model_files: Path):
    reg.create_model("m")
    version = reg.create_version("m", model_files, metrics={"a": float("nan"), "b": float("-inf"), "c": 1})
    assert str(reg.get_version("m", version.version).metrics) == "{'a': nan, 'b': -inf, 'c': 1.0}"
    with pytest.raises(InvalidInput, match="'a'"):
        reg.create_version("m", model_files, metrics={"a": "x"})  # type: ignore[dict-item]


def test_create_refuses_to_overwrite_a_model_unless_told(reg: Registry):
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


def test_what_does_not_exist_is_not_found(reg: Registry, model_files: Path, tmp_path: Path):
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

    def change(self: Any, key: str, path: Path) -> None:
        upload(self, key, path)
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
    (folder / "weights.bin").write_bytes(b"\x80\x04\x95pickle")
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


def test_content_a_version_has_is_not_sent_again(
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


def test_tags_change_and_go(reg: Registry, model_files: Path):
    reg.create_model("m")
    reg.create_version("m", model_files, tags={"a": "1", "b": "2"})
    assert reg.set_version_tags("m", 1, {"a": None, "c": "3"}).tags == {"b": "2", "c": "3"}
    entries = len(reg.history("m"))
    reg.set_version_tags("m", 1, {"c": "3"})
    assert len(reg.history("m")) == entries
    state = reg.set_model_tags("m", {"owner": "ops"}, description="new")
    assert (state.tags, state.description) == ({"owner": "ops"}, "new")


def test_history_says_what_was_live_at_any_time(folder_store: ObjectStore, model_files: Path):
    reg = Registry(folder_store, actor="ada", clock=ticking())
    reg.create_model("m")  # hour 0
    reg.create_version("m", model_files)
    reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 1)  # hour 3
    reg.set_alias("m", "champion", 2, reason="better")  # hour 4
    reg.rollback("m")  # hour 5
    start = datetime(2013, 1, 1, tzinfo=UTC)
    live = [
        reg.alias_at("m", "champion", start + timedelta(hours=h, minutes=m))
        for h, m in [(2, 59), (3, 0), (4, 30), (9, 0)]
    ]
    assert live == [None, 1, 2, 1]
    assert reg.alias_at("m", "champion", start - timedelta(days=1)) is None
    with pytest.raises(InvalidInput, match="timezone"):
        reg.alias_at("m", "champion", datetime(2013, 1, 1))  # noqa: DTZ001 - naive on purpose
    last = reg.history("m")[-2]
    assert (last.actor, last.body["reason"]) == ("ada", "better")


def test_lineage_answers_both_ways(reg: Registry, model_files: Path):
    snapshot = TableSnapshot(name="training", version=4)
    reg.create_model("m")
    reg.create_model("other")
    reg.create_version(
        "m", model_files, lineage=Lineage(run="r1", datasets=[snapshot], code="c1", features={"v": "d1"})
    )
    reg.create_version("m", model_files, lineage=Lineage(code="c2"))
    reg.create_version("other", model_files, lineage=Lineage(datasets=[snapshot]))
    reg.set_alias("m", "champion", 1)
    reg.set_traffic("m", {"canary": (2, 0.1)})
    first = Dependent(model="m", version=1, aliases=("champion",), arm="champion")
    assert reg.dependents(snapshot) == [first, Dependent(model="other", version=1)]
    assert reg.dependents("c1") == reg.dependents("d1") == reg.dependents("r1") == [first]
    assert reg.dependents("c2") == [Dependent(model="m", version=2, arm="canary")]
    assert reg.dependents(TableSnapshot(name="training", version=5)) == []


def test_a_model_card_tells_what_is_recorded(reg: Registry, model_files: Path):
    reg.create_model("m", description="Late or not?")
    lineage = Lineage(
        run="r1",
        datasets=[TableSnapshot(name="training", version=4)],
        code="c" * 64,
        features={"v": "d" * 64},
    )
    reg.create_version(
        "m", model_files, signature=SIGNATURE, metrics={"log_loss": 0.5}, lineage=lineage, tags={"a|b": "c"}
    )
    reg.as_actor("bob").approve("m", 1, comment="fine")
    reg.record_gate("m", 1, "offline", False)
    reg.set_alias("m", "champion", 1)
    card = reg.card("m", "champion")
    for text in (
        "# m@1",
        "Late or not?",
        "READY, alias 'champion'",
        "| log_loss | 0.5 |",
        "| in | x | FP32 | [-1, 1] |",
        "gate offline: FAILED",
        "approved by bob",
        "table training@4",
        "run r1",
        "a\\|b",
    ):
        assert text in card


def flip(store: ObjectStore, key: str) -> None:
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


def test_a_flipped_byte_in_a_blob_is_found_and_refused(store: ObjectStore, model_files: Path, tmp_path: Path):
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    reg.create_version("m", model_files)
    reg.download("m", 1, tmp_path / "good")
    key = next(key for key in store.list("models/m/blobs/") if len(store.get(key)) > 100)
    flip(store, key)
    with pytest.raises(Damaged, match=key):
        reg.verify("m")
    with pytest.raises(Damaged, match=key):
        reg.download("m", 1, tmp_path / "bad")
    assert not (tmp_path / "bad/model.pt2").exists()
    reg.download("m", 1, tmp_path / "good")  # what was checked and is here needs no store
    store.delete(key)
    with pytest.raises(Damaged, match="is gone"):
        reg.verify("m")


def test_a_flipped_byte_in_the_journal_is_found(folder_store: ObjectStore, model_files: Path):
    reg = Registry(folder_store, actor="ada")
    reg.create_model("m")
    reg.create_version("m", model_files)
    flip(folder_store, "models/m/journal/entries/00000001.json")
    with pytest.raises(Damaged, match="entry 1"):
        reg.verify("m")
    with pytest.raises(Damaged):
        Registry(folder_store, actor="bob").get_version("m", 1)
    assert reg.follow("m").state.versions[1].status == "READY"


def test_garbage_goes_and_what_a_version_uses_stays(
    folder_store: ObjectStore, model_files: Path, tmp_path: Path
):
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


def test_a_registration_survives_a_collection_in_its_middle(
    folder_store: ObjectStore, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    reg, collector = Registry(folder_store, actor="ada"), Registry(folder_store, actor="gc")
    reg.create_model("m")
    upload, uploads = type(folder_store).upload, []

    def then_collect(self: Any, key: str, path: Path) -> None:
        upload(self, key, path)
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


def test_progress_counts_every_byte(reg: Registry, model_files: Path, tmp_path: Path):
    reg.create_model("m")
    seen: list[int] = []
    reg.create_version("m", model_files, on_progress=seen.append)
    assert sum(seen) == 7002
    reg.download("m", 1, tmp_path / "x", on_progress=seen.append)
    assert sum(seen) == 2 * 7002


def _register(url: str, path: Path, me: int, count: int) -> list[int]:
    reg = Registry(open_store(url), actor=f"writer-{me}")
    return [reg.create_version("m", path, tags={"writer": f"{me}.{n}"}).version for n in range(count)]


def test_versions_are_dense_under_concurrency(
    processes: ForkServerContext, store_url: str, model_files: Path
):
    reg = Registry(open_store(store_url), actor="ada")
    reg.create_model("m")
    with ProcessPoolExecutor(8, mp_context=processes) as pool:
        made = [pool.submit(_register, store_url, model_files, me, 4) for me in range(8)]
        numbers = sorted(number for future in made for number in future.result())
    assert numbers == list(range(1, 33))
    tags = {version.tags["writer"] for version in reg.list_versions("m")}
    assert tags == {f"{me}.{n}" for me in range(8) for n in range(4)}
    reg.verify("m")


@pytest.mark.slow
def test_thirty_two_processes_register_ten_versions_each(
    processes: ForkServerContext, folder_url: str, model_files: Path
):
    reg = Registry(open_store(folder_url), actor="ada")
    reg.create_model("m")
    with ProcessPoolExecutor(32, mp_context=processes) as pool:
        made = [pool.submit(_register, folder_url, model_files, me, 10) for me in range(32)]
        numbers = sorted(number for future in made for number in future.result())
    assert numbers == list(range(1, 321))
    assert len({version.tags["writer"] for version in reg.list_versions("m")}) == 320
    reg.verify("m")
