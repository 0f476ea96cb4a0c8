"""A journal that lost its last entries is refused by who has seen them, and a new or longer one is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry import Access, Damaged, ObjectStore, open_store
from registry.audit_keys import AuditKeys
from registry.history import audit
from registry.journal import high_water

KEY = "ab" * 32


@pytest.fixture(params=["memory", "file"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> AuditKeys:
    """Keys of a process, of which a file survives the process with what it has seen."""
    if request.param == "memory":
        return AuditKeys([KEY])
    (tmp_path / "keys").write_text(KEY)
    return AuditKeys.of_file(tmp_path / "keys")


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


def test_what_other_machines_add_is_no_loss(tmp_path: Path, keys: AuditKeys):
    filled(tmp_path, keys, 2)
    high_water.forget()
    elsewhere = AuditKeys([KEY])
    Access(opened(tmp_path, elsewhere), actor="admin").create_token("more", "viewer")
    assert len(Access(opened(tmp_path, keys), actor="door").follow().refresh().tokens) == 3


def test_a_file_that_cannot_be_written_or_read_keeps_nobody_out(tmp_path: Path):
    (tmp_path / "keys").write_text(KEY)
    keys = AuditKeys.of_file(tmp_path / "keys")
    assert keys.marks_file is not None
    keys.marks_file.write_text('{"torn')
    filled(tmp_path, keys, 2)
    assert oct(keys.marks_file.stat().st_mode & 0o777) == "0o600"
    keys.marks_file.unlink()
    keys.marks_file.mkdir()
    filled(tmp_path, keys, 0).create_token("later", "viewer")
    assert len(Access(opened(tmp_path, keys), actor="door").follow().refresh().tokens) == 3
