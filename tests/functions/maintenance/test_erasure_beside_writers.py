"""A write in progress holds an erasure up in its own files alone: all other places are erased, and a later round ends it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from toque.functions import Context, use_context
from toque.functions.maintenance.erasure.jobs import UnfinishedErasureError, erase_subject, finish_erasures
from toque.functions.maintenance.erasure.record import Erasures
from toque.registry import Table, open_store
from toque.registry.store.tables.parts import append_with_parts, write_part

SUBJECT, OTHER = "user-1234", "user-12345"
ROWS = pa.table({"rider": [SUBJECT, OTHER]})


@pytest.mark.parametrize("ends", ["it commits", "it was killed"])
@pytest.mark.parametrize("busy", ["a/first", "m/middle", "z/last"])
def test_all_other_places_are_erased_and_a_later_round_ends_it(tmp_path: Path, busy: str, ends: str) -> None:
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    tables = [Table(store, name) for name in ("a/first", "m/middle", "z/last")]
    for table in tables:
        table.append(ROWS)
    store.put("memos/score/1.json", b'{"rider": "user-1234"}')
    store.put("memos/score/2.json", b'{"rider": "user-12345"}')
    written = Table(store, busy)
    part = write_part(written, ROWS)
    with use_context(Context(store, url, actor="ada")):
        with pytest.raises(UnfinishedErasureError, match=busy):
            erase_subject({"rider": SUBJECT})
        assert [table.read()["rider"].to_pylist() for table in tables] == [[OTHER]] * 3
        assert list(store.list("memos/")) == ["memos/score/2.json"]
        with pytest.raises(UnfinishedErasureError, match=busy):
            erase_subject({"rider": "user-1234"})
        assert len(Erasures(store).pending()) == 1
        if ends == "it commits":
            append_with_parts(written, [part], ROWS.schema, transactions={"w": 1})
        else:
            then = time.time() - 8 * 86_400
            os.utime(Path(written.uri.removeprefix("file://"), part.path), (then, then))
        (certificate,) = finish_erasures()
    assert set(written.read()["rider"].to_pylist()) == {OTHER}
    assert certificate.tables.keys() == {table.name for table in tables}
    assert (certificate.left, Erasures(store).pending()) == ([], [])


def test_other_pending_erasures_are_complete_though_one_waits(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    table = Table(store, "rides")
    table.append(pa.table({"rider": [SUBJECT, OTHER, "zoe"]}))
    write_part(table, ROWS.slice(0, 1))
    with use_context(Context(store, url, actor="ada")):
        with pytest.raises(UnfinishedErasureError):
            erase_subject({"rider": SUBJECT})
        erase_subject({"rider": OTHER})
        with pytest.raises(UnfinishedErasureError, match="0 erasures are complete and 1 are not"):
            finish_erasures()
    assert table.read()["rider"].to_pylist() == ["zoe"]
    assert len(Erasures(store).certificates()) == 1
