"""Files of samples in each format: what is written is read, and a WebDataset tar is read by its own library's rules."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.training_data.sets import samples, text_samples
from toque.functions import Context, use_context
from toque.functions.training_data import (
    OpenSet,
    SampleRows,
    SampleSetError,
    ShardCache,
    read_index,
    versions,
    write_samples,
    write_table,
)
from toque.functions.training_data.formats import KEY, SetRef, TarShard, split_member
from toque.functions.training_data.jobs import (
    cut_by_bytes,
    delete_sample_set,
    encode_png,
    images_of,
    packed,
    tars_of,
    texts_of,
    write_sample_set,
)
from toque.registry import Table, open_store


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache")


@pytest.mark.parametrize("form", ["arrow", "parquet", "webdataset"])
def test_what_is_written_is_read_in_any_order(store, cache, form):
    made = text_samples(90) if form == "webdataset" else samples(90)
    ref = write_samples(store, "some/set", [made.slice(0, 50), made.slice(50)], form=form, shard_bytes=700)
    rows = SampleRows(OpenSet.of(store, ref), cache)
    numbers = np.random.default_rng(0).permutation(90)[:70]
    found, wanted = rows.take(numbers), made.take(pa.array(numbers)).to_pydict()
    for name, values in found.items():
        expected = [v.encode() if form == "webdataset" and name == "text" else v for v in wanted[name]]
        assert values.tolist() == expected
    index = read_index(store, ref)
    assert set(index.columns) == set(made.column_names)
    assert len(index.shards) > 3
    assert (index.rows, len(rows)) == (90, 90)
    rows.close()
    assert cache.size_bytes() == sum(shard.open_bytes for shard in index.shards)


def test_versions_are_numbered_and_whole(store, monkeypatch):
    assert versions(store, "set") == []
    first = write_samples(store, "set", [samples(5)])
    monkeypatch.setattr(type(store), "upload", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_samples(store, "set", [samples(6)])
    monkeypatch.undo()
    second = write_samples(store, "set", [samples(7)])
    assert (str(first), str(second), versions(store, "set")) == ("set@1", "set@2", [1, 2])
    with pytest.raises(SampleSetError, match=r"no sample set set@3 in .*versions of 'set': \[1, 2\]"):
        read_index(store, SetRef(name="set", version=3))
    with pytest.raises(SampleSetError, match="would have no samples"):
        write_samples(store, "set", [samples(0)])
    with pytest.raises(SampleSetError, match="fields changed"):
        write_samples(store, "set", [samples(5), samples(5).drop_columns(["text"])], shard_bytes=10)


def test_missing_numbers_and_lists_of_any_length_are_read(store, cache):
    made = pa.table({"x": [1.5, None], "many": [[1, 2], [3]], "flag": [True, False]})
    found = SampleRows(OpenSet.of(store, write_samples(store, "odd", [made])), cache).take(np.array([1, 0]))
    assert np.isnan(found["x"][0])
    assert [each.tolist() for each in found["many"]] == [[3], [1, 2]]
    assert found["flag"].tolist() == [False, True]


def test_functions_write_and_delete_a_set(store):
    with use_context(Context(store, store.url)):
        snapshot = Table(store, "training/rows").append(samples(20))
        ref = write_sample_set(snapshot, "by/function", form="parquet")
        assert read_index(store, ref).rows == 20
        assert len(list(store.list("samples/"))) == 2
        for _ in range(2):
            assert delete_sample_set(ref) == ref
    assert list(store.list("samples/")) == []


def test_a_table_becomes_a_set(store):
    snapshot = Table(store, "training/rows").append(samples(20))
    ref = write_table(store, "rows", snapshot, columns=["number"])
    index = read_index(store, ref)
    assert (index.columns, index.rows, index.origin) == (("number",), 20, {"table": "training/rows@1"})


def test_shards_are_of_about_the_bytes_asked_for():
    made = samples(1_000)
    cut = list(cut_by_bytes([made.slice(0, 3), made.slice(3, 0), made.slice(3)], 4_000))
    assert pa.concat_tables(cut).equals(made)
    assert max(part.nbytes for part in cut) < 6_000
    assert all(part.num_rows == 1 for part in cut_by_bytes([made.slice(0, 5)], 1))


def test_a_tar_of_python_with_long_names_and_several_fields_is_read(tmp_path):
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in [
            ("a/1.JPG", b"x"),
            ("a/1.cls", b"7"),
            (f"b/{'n' * 120}.jpg", b"long"),
            ("c.seg.png", b""),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    shard = TarShard(path)
    found = shard.take(np.array([1, 0, 2]))
    assert found[KEY].tolist() == [f"b/{'n' * 120}", "a/1", "c"]
    assert found["jpg"].tolist() == [b"long", b"x", None]
    assert found["cls"].tolist() == [None, b"7", None]
    assert found["seg.png"].tolist() == [None, None, b""]
    assert shard.columns == [KEY, "jpg", "cls", "seg.png"]
    assert next(tars_of([path])).num_rows == 3
    with pytest.raises(SampleSetError, match="tar member 'readme' has no field"):
        split_member("readme")


def test_numbers_do_not_go_into_a_tar(store):
    with pytest.raises(SampleSetError, match="field 'number' of sample '00000000' is int"):
        write_samples(store, "numbers", [samples(2)], form="webdataset")


def test_a_folder_of_pictures_has_its_classes(tmp_path):
    for name in ("dog/2", "cat/1", "dog/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.zeros((2, 2, 3), dtype=np.uint8)))
    found = pa.concat_tables(images_of(tmp_path))
    assert found["name"].to_pylist() == ["cat/1.png", "dog/1.png", "dog/2.png"]
    assert found["label"].to_pylist() == [0, 1, 1]
    with pytest.raises(SampleSetError, match="has no pictures in folders named by class"):
        next(images_of(tmp_path / "dog"))


def test_texts_are_packed_without_gaps(tmp_path, monkeypatch):
    for number, text in enumerate(["abc", "de", "", "fghij"]):
        (tmp_path / f"{number}.txt").write_text(text)
    wanted = [97, 98, 99, 0, 100, 101, 0, 0, 102, 103, 104, 105]  # 106, 0 are left
    places = [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3]
    for at_once in (1, 100):
        monkeypatch.setattr("toque.functions.training_data.jobs._FILES_AT_ONCE", at_once)
        found = pa.concat_tables(packed(texts_of(tmp_path), lambda text: text.encode(), length=4, end=0))
        assert np.concatenate(found["tokens"].to_pylist()).tolist() == wanted
        assert np.concatenate(found["position"].to_pylist()).tolist() == places
    with pytest.raises(ValueError, match="token 200 does not fit dtype='int8'"):
        next(packed(["a"], lambda _: [200], length=1, end=0, dtype="int8"))
