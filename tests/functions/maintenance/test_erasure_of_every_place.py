"""An erasure searches every place of a store, or its certificate says which it could not: sample sets, examples, unknown formats."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conditions.ids import look_alikes
from toque.functions import Context, use_context
from toque.functions.maintenance.erasure.jobs import erase_subject, preview_erasure
from toque.functions.maintenance.erasure.places import OTHERWISE
from toque.functions.training_data.formats import SetRef, ShardFormat, read_index, versions
from toque.functions.training_data.jobs import write_samples, write_table
from toque.functions.training_data.rows import OpenSet, SampleRows
from toque.registry import Table, open_store

SUBJECT = "user-1234"
EVERYBODY = [SUBJECT, *look_alikes(SUBJECT)]
any_form = pytest.mark.parametrize("form", ["arrow", "parquet", "webdataset"])


@pytest.fixture
def context(tmp_path: Path) -> Context:
    url = f"file://{tmp_path}/store"
    return Context(open_store(url), url, actor="ada")


def erased(context: Context) -> tuple[Any, Any]:
    with use_context(context):
        before = preview_erasure({"rider": SUBJECT})
        return before, erase_subject({"rider": SUBJECT})


@any_form
@pytest.mark.parametrize("columns", [["rider", "text"], ["text"]])
def test_a_set_made_of_a_table_that_lost_rows_goes_whole_and_others_stay(
    context: Context, form: ShardFormat, columns: list[str]
):
    rows = pa.table({"rider": EVERYBODY, "text": [f"of {name}" for name in EVERYBODY]})
    store = context.store
    first = Table(store, "rides").append(rows.filter(pa.array([name != SUBJECT for name in EVERYBODY])))
    before = write_table(store, "sets/before", first, columns=columns, form=form)
    write_table(store, "sets/after", Table(store, "rides").append(rows), columns=columns, form=form)
    preview, certificate = erased(context)
    assert list(preview.objects) == ["samples/sets/after/index/00000001.json"]
    assert (certificate.removed, certificate.left) == ({"sample sets": 1}, [])
    assert versions(store, "sets/after") == []
    assert not list(store.list("samples/sets/after/"))
    assert read_index(store, before).rows == len(EVERYBODY) - 1


@any_form
def test_samples_of_no_table_lose_the_subjects_alone_and_can_be_read(context: Context, form: ShardFormat):
    texts = [json.dumps({"rider": name}) for name in EVERYBODY]
    parts = [pa.table({"json": [text]}) for text in texts] + [pa.table({"json": ["plain"] * 3})]
    reference = write_samples(context.store, "notes", parts, form=form, shard_bytes=64)
    preview, certificate = erased(context)
    assert preview.objects == {"samples/notes/index/00000001.json": "has its rows"}
    assert (certificate.removed, certificate.left) == ({"sample sets": 1}, [])
    opened = SampleRows(OpenSet.of(context.store, reference, shuffle=None))
    values = opened.take(np.arange(len(opened)))["json"]
    staying = [value if isinstance(value, str) else value.decode() for value in values]
    assert staying == [*texts[1:], *["plain"] * 3]


def test_shards_that_no_set_names_are_reported(context: Context):
    reference = write_samples(context.store, "a", [pa.table({"x": [1.0]})])
    context.store.put("samples/b/shards/0123/000000.arrow", b"half")
    _, certificate = erased(context)
    assert [each.partition(" ")[0] for each in certificate.left] == ["samples/b/shards/0123/000000.arrow"]
    assert read_index(context.store, SetRef(name="a", version=reference.version)).rows == 1


@pytest.mark.parametrize(
    "key", ["models/m/blobs/ab12", "runs/r/artifacts/ab/row.json", "checkpoints/c/row.json"]
)
def test_an_example_row_among_files_of_models_and_runs_is_named(context: Context, key: str):
    for number, name in enumerate(EVERYBODY):
        context.store.put(f"{key}-{number}", json.dumps({"rows": [{"rider": name}]}).encode())
    preview, certificate = erased(context)
    assert list(preview.objects) == [f"{key}-0"]
    assert [each.partition(" ")[0] for each in certificate.left] == [f"{key}-0"]


@pytest.mark.parametrize("place", ["brand_new/a", "reports/a.bin", "monitoring/m/state/x"])
def test_what_no_search_can_read_is_reported_in_any_place(context: Context, place: str):
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"rider": EVERYBODY}), rows)
    context.store.put(place, rows.getvalue().to_pybytes())
    context.store.put(f"{place}.json", b'{"rider": "somebody"}')
    preview, certificate = erased(context)
    assert [each.partition(" ")[0] for each in preview.left] == [place]
    assert [each.partition(" ")[0] for each in certificate.left] == [place]


def places_in_code() -> Iterator[tuple[str, str]]:
    """Texts of our code that begin like a key, with the file that has them."""
    for room in ("registry", "featurestore", "functions", "ray_apps", "clusters"):
        for path in sorted(Path(room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
                value = text.value if isinstance(text, ast.Constant) else None
                if isinstance(value, str) and re.match(r"[a-z_]+/", value):
                    yield value, str(path)


def test_every_place_that_code_writes_in_a_format_of_its_own_is_searched_or_named_with_a_reason(
    context: Context,
):
    """Whatever place the code names, a file in it that is no JSON is either in a place with a reason, or reported."""
    heads = sorted({value.split("/")[0] for value, _ in places_in_code()})
    assert {"tables", "models", "runs", "invocations", "reports"} <= {*heads}
    named = {head for head in heads if any(re.match(each, f"{head}/x") for each in OTHERWISE)} | {"tables"}
    for head in heads:
        context.store.put(f"{head}/zz", b"PAR1" + SUBJECT.encode())
    _, certificate = erased(context)
    reported = {each.partition("/")[0] for each in certificate.left}
    assert {*heads} - {*named} - reported == set()
