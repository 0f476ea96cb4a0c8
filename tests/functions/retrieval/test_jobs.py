"""Documents in a view: only what is new is embedded, what is gone is found no more, and each step of a judgement is kept."""

import json
from typing import Any

import pyarrow as pa
import pytest

from tests.language_model import language_model_weights
from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.functions import Context
from toque.functions.evaluation import EvaluationError
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.retrieval import document_view, jobs
from toque.functions.retrieval.jobs import evaluate_retrieval, refresh_documents, retrieve
from toque.registry import InvalidInput, Table, TableSnapshot

PAGES = {
    "ovens": "# Ovens\n\nAn oven is heated to 200 degrees before the bread is baked.",
    "knives": "# Knives\n\nA knife is sharpened on a wet stone every week.",
    "rivers": "# Rivers\n\nThe Danube flows from the Black Forest to the Black Sea.",
}


def put(context: Context, pages: dict[str, str]) -> TableSnapshot:
    rows = pa.table({"document": list(pages), "text": list(pages.values())})
    return Table(context.store, "pages").overwrite(rows)


@pytest.fixture
def docs(context: Context) -> Context:
    context.features().apply([document_view("docs", length=512)])
    return context


def names(found: Any) -> list[str]:
    return [each.document for each in found.passages]


def test_a_question_finds_its_document_and_says_where_it_is_from(docs: Context):
    snapshot = put(docs, PAGES)
    done = refresh_documents("docs", snapshot)
    assert (done.documents, done.embedded, done.kept, done.removed) == (3, 3, 0, 0)
    found = retrieve("docs", "To how many degrees is the oven heated?", k=2)
    assert names(found)[0] == "ovens"
    assert "200 degrees" in found.passages[0].text
    assert found.passages[0].heading == "Ovens"
    assert found.passages[0].distance < found.passages[1].distance
    assert (found.embedder, found.view) == ("words", "docs")
    rows = docs.features().offline_table("docs").read()
    assert set(rows["source"].to_pylist()) == {str(snapshot)}


def test_only_what_is_new_is_embedded_and_what_is_gone_is_found_no_more(docs: Context):
    refresh_documents("docs", put(docs, PAGES))
    before = docs.features().now()
    again = refresh_documents("docs", put(docs, PAGES))
    assert (again.embedded, again.kept, again.removed) == (0, 3, 0)
    changed = {name: text for name, text in PAGES.items() if name != "rivers"}
    changed["knives"] = "# Knives\n\nA knife is never put into a dishwasher."
    done = refresh_documents("docs", put(docs, changed))
    assert (done.embedded, done.kept, done.removed) == (1, 1, 2)
    assert set(names(retrieve("docs", "Where does the Danube flow?", k=9))) == {"ovens", "knives"}
    assert "dishwasher" in retrieve("docs", "Does a knife go into the dishwasher?", k=1).passages[0].text
    vector = [0.0] * 511 + [1.0]
    then = docs.features().search("docs", vector=vector, k=9, at=before)
    assert {each.features["document"] for each in then.found} == set(PAGES)
    back = refresh_documents("docs", put(docs, PAGES))
    assert (back.embedded, back.kept, back.removed) == (2, 1, 1)
    assert names(retrieve("docs", "Where does the Danube flow?", k=1)) == ["rivers"]


def test_a_killed_refresh_keeps_what_it_wrote(docs: Context, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "_WRITTEN_AT_ONCE", 1)
    write, calls = jobs._write, []

    def dies_at_the_third(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise MemoryError
        write(*given)

    snapshot = put(docs, PAGES)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_write", dies_at_the_third)
        with pytest.raises(MemoryError):
            refresh_documents("docs", snapshot)
    done = refresh_documents("docs", snapshot)
    assert (done.embedded, done.kept) == (1, 2)


def test_retrieval_is_scored_and_each_step_is_kept(docs: Context):
    refresh_documents("docs", put(docs, PAGES))
    rows = {
        "question": ["How often is a knife sharpened?", "Where does the Danube end?", "What is a comet?"],
        "relevant": ["knives", '["rivers"]', "comets"],
    }
    dataset = Table(docs.store, "questions").append(pa.table(rows))
    scores = evaluate_retrieval("docs", dataset, k=1)
    assert scores.questions == 3
    assert scores.hit.estimate == pytest.approx(2 / 3)
    steps = Table(docs.store, "retrievals/docs").read().to_pylist()
    assert [each["hit"] for each in steps] == [1, 1, 0]
    assert json.loads(steps[0]["found"])[0][1] == "knives"
    assert steps[0]["dataset"] == str(dataset)
    assert steps[0]["table_version"] is not None


def test_what_does_not_fit_is_named(docs: Context):
    with pytest.raises(InvalidInput, match=r"needs \['text'\]"):
        refresh_documents("docs", Table(docs.store, "bare").append(pa.table({"document": ["a"]})))
    twice = Table(docs.store, "twice").append(pa.table({"document": ["a", "a"], "text": ["x", "y"]}))
    with pytest.raises(InvalidInput, match="'a' is there more than once"):
        refresh_documents("docs", twice)
    other = FeatureView("plain", [Entity("chunk")], [Field("x", Float64)])
    docs.features().apply([other])
    with pytest.raises(InvalidInput, match="declare it with document_view"):
        retrieve("plain", "x")
    docs.features().apply([document_view("odd", length=8, embedder="smol")])
    with pytest.raises(InvalidInput, match=r"embedder='smol': expected 'words', or a version"):
        retrieve("odd", "x")
    empty = Table(docs.store, "empty").append(pa.table({"question": ["x"], "relevant": [""]}))
    with pytest.raises(EvaluationError, match="row 0: question or relevant is empty"):
        evaluate_retrieval("docs", empty)


@pytest.mark.slow
def test_a_language_model_embeds(context: Context):
    settings = EngineSettings(context_length=256, slots=2)
    register_generative(context.registry(), "smol", weights=language_model_weights(), settings=settings)
    context.features().apply([document_view("docs", length=576, embedder="smol@1")])
    done = refresh_documents("docs", put(context, PAGES))
    assert (done.embedded, done.embedder) == (3, "smol@1")
    found = retrieve("docs", PAGES["rivers"].split("\n\n")[1], k=3)
    assert names(found)[0] == "rivers"
    context.features().apply([document_view("short", length=8, embedder="smol@1")])
    with pytest.raises(InvalidInput, match="declare it with length=576"):
        retrieve("short", "x")
