"""An erasure takes the rows and objects of its subject, and none of those whose ids resemble it; a preview lists the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings

from tests.conditions.ids import IDS, ids, look_alikes
from toque.featurestore.sources.rows import REASON, ROW
from toque.functions import Context, use_context
from toque.functions.maintenance.erasure.jobs import erase_subject, preview_erasure
from toque.functions.maintenance.erasure.subject import MIN_TEXT, Subject, Traces
from toque.registry import Table, open_store


def context_in(folder: Path) -> Context:
    url = f"file://{folder}/store"
    return Context(open_store(url), url, actor="ada")


def filled(folder: Path, subject: str) -> Context:
    """Make a store in which the subject and each of its look-alikes have the same rows and objects."""
    context = context_in(folder)
    everybody = [subject, *look_alikes(subject)]
    predictions = pa.table(
        {
            "prediction_id": [f"p-{person}" for person in everybody],
            "unit": everybody,
            "entities": [json.dumps({"rider": person}) for person in everybody],
        }
    )
    Table(context.store, "predictions/late").append(predictions)
    Table(context.store, "labels").append(predictions.select(["prediction_id"]))
    Table(context.store, "rides").append(pa.table({"rider": everybody, "friend": list(reversed(everybody))}))
    Table(context.store, "notes").append(pa.table({"text": [f"{person} called." for person in everybody]}))
    for number, person in enumerate(everybody):
        context.store.put(f"memos/score/{number}.json", json.dumps({"json": {"rider": person}}).encode())
        context.store.put(f"reports/{number}.html", f"<td>{person}</td>".encode())
    return context


@pytest.mark.parametrize("subject", IDS)
def test_those_whose_ids_resemble_the_subjects_keep_their_rows_and_objects(tmp_path: Path, subject: str):
    context, others = filled(tmp_path, subject), look_alikes(subject)
    with use_context(context):
        certificate = erase_subject({"rider": subject}, subject)
    store = context.store
    assert Table(store, "predictions/late").read()["unit"].to_pylist() == others
    assert Table(store, "labels").read()["prediction_id"].to_pylist() == [f"p-{person}" for person in others]
    assert Table(store, "rides").read()["rider"].to_pylist() == others
    assert Table(store, "notes").read().num_rows == len(others) + 1
    assert len(list(store.list("memos/"))) == len(others)
    assert len(list(store.list("reports/"))) == len(others) + 1
    assert {name: table.rows for name, table in certificate.tables.items()} == {
        "labels": 1, "predictions/late": 1, "rides": 1,
    }  # fmt: skip
    assert not certificate.text


@pytest.mark.parametrize("subject", [subject for subject in IDS if len(subject) >= MIN_TEXT])
def test_texts_that_mention_the_subject_go_on_request_and_those_of_look_alikes_stay(
    tmp_path: Path, subject: str
):
    context, others = filled(tmp_path, subject), look_alikes(subject)
    with use_context(context):
        erase_subject(None, subject, text=True)
    notes = Table(context.store, "notes").read()["text"].to_pylist()
    assert notes == [f"{person} called." for person in others]
    assert len(list(context.store.list("reports/"))) == len(others)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(subject=ids)
def test_no_look_alike_of_any_id_matches(subject: str):
    everybody = [subject, *look_alikes(subject)]
    rows = pa.table(
        {
            "unit": [None] * len(everybody),
            "rider": everybody,
            "entities": [json.dumps([{"rider": person}]) for person in everybody],
            "text": [f"(from {person})" for person in everybody],
        },
        pa.schema([(name, pa.string()) for name in ("unit", "rider", "entities", "text")]),
    )
    alone = [True] + [False] * (len(everybody) - 1)
    for text in (False, True):
        traces = Traces.of(Subject(entity={"rider": subject}), key=None, text=text)
        assert traces.mask(rows).to_pylist() == alone
        for person, is_subject in zip(everybody, alone, strict=True):
            document = json.dumps({"rows": {"rider": [person]}}).encode()
            assert traces.in_bytes(document) == is_subject
            assert traces.mentions(f"a note\nof {person}.") == (is_subject and len(subject) >= MIN_TEXT)
    assert Traces.of(Subject(unit=subject), key=None).mask(rows).to_pylist() == [False] * len(everybody)


@pytest.mark.parametrize(
    "text", ["{}", "to {}.", '["{}"]', "mailto:{}", "x\\n{}\\n", "rider={}&", "({})", "a\n{}"]
)
def test_a_mention_is_a_whole_word_between_any_punctuation(text: str):
    traces = Traces.of(Subject(unit="ann@example.com"), key=None, text=True)
    assert traces.mentions(text.format("ann@example.com"))
    assert not traces.mentions(text.format("joann@example.com"))


def test_an_entity_of_several_keys_takes_no_row_that_shares_one_of_them():
    traces = Traces.of(Subject(entity={"flight": "LH400", "seat": "4"}), key=None)
    rows = pa.table(
        {
            "flight": ["LH400", "LH400", "LH4000", "LH401"],
            "seat": [4, 14, 4, 4],
            "entities": [json.dumps({"flight": flight, "seat": seat}) for flight, seat in
                         (("LH400", 14), ("LH401", 4), ("LH400", 44), ("LH400", 4))],
        }
    )  # fmt: skip
    assert traces.mask(rows).to_pylist() == [True, False, False, True]
    assert traces.mask(rows.select(["seat"])).to_pylist() == [False] * 4
    assert traces.names(b'{"flight": ["LH401", "LH400"], "seat": [3, 4]}')
    assert not traces.names(b'{"flight": ["LH401", "LH400"], "seat": [4, 3]}')


@pytest.mark.parametrize("text", [False, True])
def test_a_preview_lists_what_the_erasure_takes_and_changes_nothing(tmp_path: Path, text: bool):  # noqa: FBT001  # a parameter of the test
    subject = "ann@example.com"
    context = filled(tmp_path, subject)
    before = contents(context)
    with use_context(context):
        preview = preview_erasure({"rider": subject}, subject, text=text)
        assert contents(context) == before
        certificate = erase_subject({"rider": subject}, subject, text=text)
        after = preview_erasure({"rider": subject}, subject, text=text)
    taken = {name: table.rows for name, table in preview.tables.items() if table.rows}
    assert taken == {name: table.rows for name, table in certificate.tables.items()}
    assert len(preview.objects) == sum(certificate.removed.values())
    notes, rides = preview.tables["notes"], preview.tables["rides"]
    assert (notes.rows, notes.staying) == ((1, 0) if text else (0, 1))
    assert notes.why == {"text of text": 1}
    assert rides.why == {"rider": 1, "text of friend": 1, "text of rider": 1}
    assert len(rides.whose) == 2  # the subject, and whose friend it is
    assert preview.staying == ([] if text else ["reports/0.html"])
    assert not after.objects
    assert not [table for table in after.tables.values() if table.rows]


def contents(context: Context) -> dict[str, Any]:
    return {key: context.store.get(key) for key in context.store.list("")}


KEPT_ASIDE = ["user:123", "Doe, Jane", "a|b", "jané", "200", "17"]


@pytest.mark.parametrize("subject", KEPT_ASIDE)
def test_a_row_that_was_kept_aside_goes_by_its_whole_fields_in_any_form_of_it(subject: str):
    spelled = json.dumps(subject)
    forms = [
        f'"{subject}",5,10:30\n',
        json.dumps({"rider": subject, "fare": 5}),
        json.dumps({"trips": [{"rider": [subject]}]}),
        f'{{"rider": {spelled}, "fare": ',
        f'{{"rider": {spelled[:-1]}',
    ]
    others = [
        f"user:{subject},5",
        f"{subject}0,5",
        f'"x {subject}",5',
        json.dumps({"rider": f"{subject}-b"}),
        "a,10:30",
    ]
    traces = Traces.of(Subject(entity={"rider": subject}), key=None)
    texts = [*forms, *others]
    rows = pa.table({REASON: ["bad"] * len(texts), ROW: texts})
    assert traces.mask(rows).to_pylist() == [True] * len(forms) + [False] * len(others)


def test_a_whole_number_is_found_as_sources_write_it():
    traces = Traces.of(Subject(entity={"rider": "17"}), key=None)
    rows = pa.table({REASON: ["bad"] * 4, ROW: ['{"rider": 17.0}', "17.00,x", "17.5,x", "117.0,x"]})
    assert traces.mask(rows).to_pylist() == [True, True, False, False]


def test_of_two_units_that_chose_one_prediction_id_the_other_keeps_its_row():
    traces = Traces.of(Subject(unit="anna"), key=None, ids=["trip-7"])
    rows = pa.table({"prediction_id": ["trip-7"] * 3, "unit": ["anna", "berta", None]})
    assert traces.mask(rows).to_pylist() == [True, False, True]
    assert traces.mask(rows.select(["prediction_id"])).to_pylist() == [True] * 3


def test_keys_in_a_column_of_bytes_are_compared_as_bytes():
    traces = Traces.of(Subject(entity={"rider": "anna"}), key=None)
    rows = pa.table({"rider": pa.array([b"anna", b"\xff\xfe", None, b"annab"], pa.binary())})
    assert traces.mask(rows).to_pylist() == [True, False, False, False]
