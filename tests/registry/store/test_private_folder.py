"""Folders and files that other users of the machine can neither read nor make first."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toque.registry import Forbidden, open_store
from toque.registry.store import private_folder, temporary_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def machines_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder in which everybody may write, as /tmp is."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_only_its_user_reads_a_store_whatever_the_umask(tmp_path: Path, umask: int):
    root, source = tmp_path / "store", tmp_path / "file"
    source.write_bytes(b"uploaded")
    store = open_store(root.as_uri())
    store.create("deep/er/created", b"1")
    store.put("deep/put", b"2")
    store.upload("deep/uploaded", source)
    found = [root, *root.rglob("*")]
    assert {mode(path) for path in found if path.is_dir()} == {0o700}
    assert {mode(path) for path in found if path.is_file()} == {0o600}


def test_a_root_that_its_group_may_write_is_shared_with_it(tmp_path: Path, umask: int):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    open_store(root.as_uri()).create("deep/er/created", b"1")
    found = list(root.rglob("*"))
    assert {mode(path) for path in found if path.is_dir()} == {0o2770}
    assert {mode(path) for path in found if path.is_file()} == {0o660}


def test_a_private_folder_is_made_closed_and_an_open_one_of_ours_is_closed(tmp_path: Path, umask: int):
    assert mode(private_folder(tmp_path / "new")) == 0o700
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    assert mode(private_folder(tmp_path / "old")) == 0o700


def test_what_another_user_made_first_is_refused(
    machines_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ours = machines_folder / f"toque-{os.getuid()}"
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    ours.symlink_to(theirs)
    with pytest.raises(Forbidden, match="is no folder but a link"):
        temporary_folder("loading")
    assert list(theirs.iterdir()) == []
    ours.unlink()

    ours.mkdir()
    ours.chmod(0o777)
    with pytest.raises(Forbidden, match="has mode 777: others may have written"):
        temporary_folder("loading")

    ours.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Forbidden, match=f"belongs to user {os.getuid()}, not to"):
        temporary_folder("loading")


def test_fixed_names_in_the_temporary_folder_lie_in_one_private_folder(machines_folder: Path):
    assert temporary_folder("loading") == machines_folder / f"toque-{os.getuid()}" / "loading"
    assert {mode(path) for path in machines_folder.rglob("*")} == {0o700}
