"""The last line of a CSV file: whole if the file has rested, else left and told; never half, never lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from toque.featurestore import (
    BatchSource,
    CsvFiles,
    FeatureStore,
    Field,
    Float64,
    SourceLoad,
    String,
    UnreadableSource,
)

LINE_ENDS = {"LF": "\n", "CR": "\r", "CR LF": "\r\n"}
any_line_end = pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS.keys())
LINES = ["user,at,amount", "u1,2024-05-01T01:00:00Z,1", "u2,2024-05-01T02:00:00Z,25"]


def land(path: Path, text: str, *, rested: bool) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    if rested:
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def source(offline_fs: FeatureStore, tmp_path: Path) -> FeatureStore:
    schema = [Field("user", String), Field("amount", Float64)]
    offline_fs.apply([BatchSource("tx", CsvFiles(f"{tmp_path}/in/*.csv"), schema, timestamp="at")])
    return offline_fs


def load(fs: FeatureStore) -> SourceLoad | None:
    return fs.source_table("tx").load(lambda _name: "")


def amounts(fs: FeatureStore) -> list[float]:
    found: list[float] = fs.source_table("tx").rows()["amount"].to_pylist()
    return sorted(found)


@any_line_end
@pytest.mark.parametrize("ended", [1, 0])
def test_a_file_that_has_rested_has_all_its_rows(
    source: FeatureStore, tmp_path: Path, end: str, ended: int
) -> None:
    land(tmp_path / "in/a.csv", end.join(LINES) + end * ended, rested=True)
    found = load(source)
    assert found is not None
    assert (found.rows, found.waiting, amounts(source)) == (2, {}, [1.0, 25.0])
    assert load(source) is None


@any_line_end
def test_a_line_that_may_be_half_written_waits_and_is_told_until_the_file_rests(
    source: FeatureStore, tmp_path: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "in/a.csv"
    land(path, end.join(LINES), rested=False)
    found = load(source)
    assert found is not None
    assert (amounts(source), list(found.waiting)) == ([1.0], [str(path)])
    assert "bytes of file" in found.waiting[str(path)]
    caplog.clear()
    assert load(source) is None  # nothing new, and what waits is told again
    assert "end no line" in caplog.text
    land(path, end.join(LINES), rested=True)
    assert load(source) is not None
    assert amounts(source) == [1.0, 25.0]


@any_line_end
@pytest.mark.parametrize("rested", [1, 0])
def test_a_file_goes_on_where_a_line_without_an_end_was_read(
    source: FeatureStore, tmp_path: Path, end: str, rested: int
) -> None:
    path = tmp_path / "in/a.csv"
    land(path, end.join(LINES), rested=bool(rested))
    load(source)
    land(path, end.join([*LINES, "u3,2024-05-01T03:00:00Z,3"]) + end, rested=False)
    load(source)
    assert amounts(source) == [1.0, 3.0, 25.0]


@pytest.mark.parametrize("more", ["5\n", "5", "5\nu3,2024-05-01T03:00:00Z,3\n"])
def test_a_line_that_goes_on_after_it_was_read_is_told_and_not_cut_in_two(
    source: FeatureStore, tmp_path: Path, more: str
) -> None:
    path = tmp_path / "in/a.csv"
    land(path, "\n".join(LINES), rested=True)
    load(source)
    land(path, "\n".join(LINES) + more, rested=False)
    with pytest.raises(UnreadableSource, match="what was read of it changed"):
        load(source)
    assert amounts(source) == [1.0, 25.0]


def test_another_file_is_loaded_beside_one_that_waits(source: FeatureStore, tmp_path: Path) -> None:
    land(tmp_path / "in/a.csv", LINES[0] + "\nu9,2024-05-01T0", rested=False)
    land(tmp_path / "in/b.csv", "\n".join(LINES), rested=True)
    found = load(source)
    assert found is not None
    assert (amounts(source), [Path(each).name for each in found.waiting]) == ([1.0, 25.0], ["a.csv"])


def test_a_row_that_an_earlier_release_left_out_comes_in(
    source: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had recorded the file as read, up to before its last line."""
    land(tmp_path / "in/a.csv", "\n".join(LINES), rested=True)
    with monkeypatch.context() as patch:
        patch.setattr(CsvFiles, "_is_whole", lambda _self, _file: False, raising=False)
        load(source)
    assert amounts(source) == [1.0]
    load(source)
    assert amounts(source) == [1.0, 25.0]
