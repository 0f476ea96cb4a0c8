"""A journal that lost its last entries is refused by who has seen them, and a new or longer one is not."""

from __future__ import annotations

import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from toque.registry import Access, Damaged, ModelPolicy, ObjectStore, Registry, open_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import audit
from toque.registry.journal import Fold, high_water

KEY = "ab" * 32


@pytest.fixture(params=["memory", "file"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> AuditKeys:
    """Keys of a process, of which a file survives the process with what it has seen."""
    if request.param == "memory":
        return AuditKeys([KEY])
    return keys_of_file(tmp_path)


def keys_of_file(folder: Path) -> AuditKeys:
    (folder / "keys").write_text(KEY)
    return AuditKeys.of_file(folder / "keys")


def opened(folder: Path, keys: AuditKeys) -> ObjectStore:
    return open_store(f"file://{folder}/store", audit_keys=keys)


def process_starts(keys: AuditKeys) -> None:
    """Take away what only a process that lives on knows."""
    if keys.marks_file is not None:
        high_water.forget()


def filled(folder: Path, keys: AuditKeys, count: int) -> Access:
    access = Access(opened(folder, keys), actor="admin")
    for number in range(count):
        access.create_token(f"t{number}", "viewer")
    return access


def entries(store: ObjectStore) -> list[str]:
    return list(store.list("access/journal/entries/"))


@pytest.mark.parametrize("count", [2, 63, 64, 65, 130])
@pytest.mark.parametrize("lost", [1, 2, 60])
def test_a_journal_that_lost_its_end_is_refused_and_reported(
    tmp_path: Path, keys: AuditKeys, count: int, lost: int
):
    filled(tmp_path, keys, count)
    store = opened(tmp_path, keys)
    for key in entries(store)[max(1, count - lost) :]:
        store.delete(key)
    if lost < count:
        store.delete("access/journal/snapshot.json")
    process_starts(keys)
    with pytest.raises(Damaged, match=rf"this machine has seen {count}: the last were deleted"):
        Access(opened(tmp_path, keys), actor="door").read()
    assert [text for text in audit(opened(tmp_path, keys)).findings if f"has seen {count}" in text]


def test_an_end_that_was_written_anew_by_somebody_with_an_old_copy_is_refused(
    tmp_path: Path, keys: AuditKeys
):
    filled(tmp_path, keys, 2)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    filled(tmp_path, keys, 0).create_token("mine", "viewer")
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "copy", tmp_path / "store")
    process_starts(keys)
    with pytest.raises(Damaged, match="has seen 3"):
        Access(opened(tmp_path, keys), actor="door").read()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_store_that_was_made_anew_in_the_same_place_is_no_loss(tmp_path: Path, keys: AuditKeys, count: int):
    filled(tmp_path, keys, 3)
    shutil.rmtree(tmp_path / "store")
    process_starts(keys)
    filled(tmp_path, keys, count)
    process_starts(keys)
    state = Access(opened(tmp_path, keys), actor="door").follow().refresh()
    assert len(state.tokens) == count
    assert audit(opened(tmp_path, keys)).findings == ()


JOURNALS = ["access/journal", "models/late/journal", "models/late-2/journal"]


def fill_all(folder: Path, keys: AuditKeys, paths: list[str], count: int) -> None:
    """Give journals so many entries each."""
    store = opened(folder, keys)
    registry = Registry(store, actor="admin")
    for path in paths:
        if path == "access/journal":
            filled(folder, keys, count)
        else:
            model = path.split("/")[1]
            registry.create_model(model)
            for number in range(1, count):
                registry.set_policy(model, ModelPolicy(approvals=(number + 1) % 2))


def read(folder: Path, keys: AuditKeys, path: str) -> int:
    """Number of entries that a process which starts now reads."""
    process_starts(keys)
    store = opened(folder, keys)
    if path == "access/journal":
        fold: Fold[Any] = Access(store, actor="door").follow()
    else:
        fold = Registry(store, actor="door").follow(path.split("/")[1])
    fold.refresh()
    return fold.next


def delete_entries(store: ObjectStore, path: str, start: int = 0) -> None:
    for key in list(store.list(f"{path}/entries/"))[start:]:
        store.delete(key)


@pytest.mark.parametrize("count", [1, 3, 65])
@pytest.mark.parametrize("path", JOURNALS[:2])
def test_a_journal_of_which_every_entry_was_deleted_is_refused_and_reported(
    tmp_path: Path, keys: AuditKeys, path: str, count: int
):
    fill_all(tmp_path, keys, [other for other in JOURNALS if other != path], 1)
    fill_all(tmp_path, keys, [path], count)
    store = opened(tmp_path, keys)
    delete_entries(store, path)
    store.delete(f"{path}/snapshot.json")
    with pytest.raises(Damaged, match=rf"^{path} ends after 0 entries, and this machine has seen {count}:"):
        read(tmp_path, keys, path)
    for other in {*JOURNALS} - {path}:
        assert read(tmp_path, keys, other) == 1
    findings = audit(opened(tmp_path, keys)).findings
    assert findings == (f"{path} is gone; this machine has seen {count} entries",)


@pytest.mark.parametrize("left", [0, 1, 63])
@pytest.mark.parametrize("seen", [True, False])
def test_a_snapshot_beside_deleted_entries_stands_for_no_journal(
    tmp_path: Path, keys: AuditKeys, *, seen: bool, left: int
):
    """Also on a machine that has not seen the journal."""
    filled(tmp_path, keys, 64)
    store = opened(tmp_path, keys)
    assert read(tmp_path, keys, "access/journal") == 64
    delete_entries(store, "access/journal", left)
    assert store.find("access/journal/snapshot.json")
    reader = keys if seen else AuditKeys([KEY])
    if not seen:
        high_water.forget()
    with pytest.raises(Damaged, match="snapshot is of 64 entries, and entry 63 is missing"):
        Access(opened(tmp_path, reader), actor="door").follow().refresh()
    findings = audit(opened(tmp_path, reader)).findings
    assert any(f"snapshot is of 64 entries, and the journal has {left}" in text for text in findings)


@pytest.mark.parametrize("order", list(permutations([*JOURNALS[:2], "models/other/journal"])))
def test_a_store_that_was_made_anew_may_fill_its_journals_in_any_order(
    tmp_path: Path, order: tuple[str, ...]
):
    keys = keys_of_file(tmp_path)
    fill_all(tmp_path, keys, JOURNALS, 2)
    shutil.rmtree(tmp_path / "store")
    for number, path in enumerate(order):
        process_starts(keys)
        fill_all(tmp_path, keys, [path], 1)
        assert read(tmp_path, keys, path) == 1
        for later in order[number + 1 :]:
            assert read(tmp_path, keys, later) == 0
    assert audit(opened(tmp_path, keys)).findings == ()


def test_an_old_copy_in_the_place_of_a_newer_store_is_refused_also_after_another_store_was_there(
    tmp_path: Path,
):
    keys = keys_of_file(tmp_path)
    fill_all(tmp_path, keys, JOURNALS, 1)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    filled(tmp_path, keys, 0).create_token("mine", "viewer")
    shutil.rmtree(tmp_path / "store")
    process_starts(keys)
    fill_all(tmp_path, keys, ["models/other/journal"], 1)
    assert read(tmp_path, keys, "access/journal") == 0
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "copy", tmp_path / "store")
    with pytest.raises(Damaged, match="has seen 2"):
        read(tmp_path, keys, "access/journal")


def test_what_other_machines_add_is_no_loss(tmp_path: Path, keys: AuditKeys):
    filled(tmp_path, keys, 2)
    high_water.forget()
    elsewhere = AuditKeys([KEY])
    Access(opened(tmp_path, elsewhere), actor="admin").create_token("more", "viewer")
    assert len(Access(opened(tmp_path, keys), actor="door").follow().refresh().tokens) == 3


def test_a_file_that_cannot_be_written_or_read_keeps_nobody_out(tmp_path: Path):
    keys = keys_of_file(tmp_path)
    assert keys.marks_file is not None
    keys.marks_file.write_text('{"torn')
    filled(tmp_path, keys, 2)
    assert oct(keys.marks_file.stat().st_mode & 0o777) == "0o600"
    keys.marks_file.unlink()
    keys.marks_file.mkdir()
    filled(tmp_path, keys, 0).create_token("later", "viewer")
    assert len(Access(opened(tmp_path, keys), actor="door").follow().refresh().tokens) == 3
