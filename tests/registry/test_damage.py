from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.replica import SIGNATURE, champion, replica
from toque.registry import Damaged, ObjectStore, Registry


def flip(store: ObjectStore, key: str, at: int) -> None:
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, bytes(data))


def cut(store: ObjectStore, key: str, at: int) -> None:
    store.put(key, store.get(key)[:at])


def grow(store: ObjectStore, key: str, _: int) -> None:
    store.put(key, store.get(key) + b" ")


@pytest.fixture
def model(store: ObjectStore, model_files: Path) -> Registry:
    """A registry with a model of two versions, one of them live."""
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    reg.create_version("m", model_files)
    (model_files / "model.pt2").write_bytes(b"other weights" * 500)
    reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 2)
    return reg


def cold(reg: Registry) -> Registry:
    return Registry(reg.store, actor="replica")


@pytest.mark.parametrize("harm", [flip, cut, grow])
def test_any_changed_blob_is_found_and_refused(
    model: Registry, tmp_path: Path, harm: Callable[[ObjectStore, str, int], None]
):
    for version in (1, 2):
        for path, blob in model.get_version("m", version).files.items():
            key = f"models/m/blobs/{blob.generation:08d}/{blob.sha256}"
            good = model.store.get(key)
            for at in {0, len(good) // 2, len(good) - 1} if good else ():
                harm(model.store, key, at)
                with pytest.raises(Damaged, match=key):
                    model.verify("m")
                target = tmp_path / f"{version}{at}{path.replace('/', '-')}"
                with pytest.raises(Damaged, match=key):
                    cold(model).download("m", version, target)
                assert not (target / path).exists()
                model.store.put(key, good)
    assert model.verify("m").blobs == 4


def test_downloaded_files_need_no_blob_in_the_store(model: Registry, tmp_path: Path):
    model.download("m", "champion", tmp_path / "here")
    key = next(iter(model.store.list("models/m/blobs/")))
    model.store.delete(key)
    model.download("m", "champion", tmp_path / "here")
    with pytest.raises(Damaged, match=r"is gone"):
        model.verify("m")


@pytest.mark.parametrize("harm", [flip, cut, grow])
def test_any_changed_entry_is_found_and_never_applied(
    model: Registry, tmp_path: Path, harm: Callable[[ObjectStore, str, int], None]
):
    """A cold reader reads the last entry and those it carries: it refuses damage, or reads what was written."""
    keys = list(model.store.list("models/m/journal/entries/"))
    truth = model.get_model("m")
    for number, key in enumerate(keys):
        good = model.store.get(key)
        for at in (0, len(good) // 2, len(good) - 1):
            harm(model.store, key, at)
            with pytest.raises(Damaged, match=f"entry {number}"):
                cold(model).verify("m")
            with pytest.raises(Damaged, match=f"entry {number}"):
                model.verify("m")
            if key == keys[-1]:
                with pytest.raises(Damaged, match=f"entry {number}"):
                    cold(model).download("m", "champion", tmp_path / "refused")
                assert not (tmp_path / "refused").exists()
            else:
                assert cold(model).get_model("m") == truth
            model.store.put(key, good)


def test_a_follower_keeps_its_state_when_the_next_entry_is_damaged(model: Registry):
    follower = cold(model).follow("m")
    before = follower.refresh()
    model.promote("m", 1)
    key = list(model.store.list("models/m/journal/entries/"))[-1]
    good = model.store.get(key)
    flip(model.store, key, len(good) // 2)
    for _ in range(2):
        with pytest.raises(Damaged):
            follower.refresh()
        assert follower.state == before
    model.store.put(key, good)
    assert follower.refresh().aliases == {"champion": 1}


def test_serving_goes_on_with_the_version_it_has_whatever_is_damaged(
    store: ObjectStore, model_files: Path, tmp_path: Path
):
    now = [0.0]
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    for weights in (b"one", b"two"):
        (model_files / "model.pt2").write_bytes(weights)
        reg.create_version("m", model_files, signature=SIGNATURE)
    reg.promote("m", 1)
    engine = replica(store, tmp_path / "scratch", lambda: now[0])
    assert champion(engine) == 1

    reg.promote("m", 2)
    last = list(store.list("models/m/journal/entries/"))[-1]
    blobs = [key for key in store.list("models/m/blobs/") if store.get(key)]
    assert len(blobs) == 3  # of both versions: weights, and the file they share
    own = [
        key
        for key in blobs
        if key.rpartition("/")[2] in {b.sha256 for b in reg.get_version("m", 2).files.values()}
    ]
    for key in (last, *own):
        good = store.get(key)
        flip(store, key, len(good) // 2)
        now[0] += 100.0  # later than any pause after a failure
        assert champion(engine) == 1
        assert (
            champion(replica(store, tmp_path / "new", lambda: now[0])) is None
        )  # it has nothing to go on with
        store.put(key, good)
    assert "has bytes of digest" in engine.failures[2]
    now[0] += 100.0
    assert champion(engine) == 2


@pytest.mark.proof
def test_a_flipped_bit_in_every_byte_of_every_object_is_found(
    folder_store: ObjectStore, model_files: Path, tmp_path: Path
):
    (model_files / "model.pt2").write_bytes(b"weights" * 100)
    reg = Registry(folder_store, actor="ada")
    reg.create_model("m")
    reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 1)
    truth = reg.get_model("m")
    entries = list(folder_store.list("models/m/journal/entries/"))
    for key in (*entries, *folder_store.list("models/m/blobs/")):
        good = folder_store.get(key)
        named = f"entry {entries.index(key)} " if key in entries else key
        for at in range(len(good)):
            flip(folder_store, key, at)
            with pytest.raises(Damaged, match=named):
                cold(reg).verify("m")
            if key in entries[:-1]:  # what a cold reader takes from the last entry is still what was written
                assert cold(reg).get_model("m") == truth
            else:
                with pytest.raises(Damaged, match=named):
                    cold(reg).download("m", "champion", tmp_path / f"{key[-9:]}{at}")
            folder_store.put(key, good)
    assert reg.verify("m").blobs == 3
