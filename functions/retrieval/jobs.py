"""Retrieval as functions: bring documents into a view, look a question up, and judge how well that finds what it should."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.featurestore import FeatureStore, FeatureView, Vector
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.retrieval.chunks import Chunk, chunks_of
from toque.functions.retrieval.embedding import Embedder, embedder_of
from toque.functions.retrieval.scores import RetrievalScores, StepScore, score_retrieval, score_step
from toque.functions.retrieval.view import EMBEDDING
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources, Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.run.capture import report_progress
from toque.functions.runtime.spans import span
from toque.registry import InvalidInput, ObjectStore, Table, TableSnapshot

__all__ = [
    "Passage",
    "RefreshedDocuments",
    "Retrieved",
    "evaluate_retrieval",
    "refresh_documents",
    "retrieve",
]

_WRITTEN_AT_ONCE: Final = 256
"""Chunks of one commit: a run that is killed keeps the vectors of those before."""
_STEPS: Final = pa.schema(
    [
        ("view", pa.string()),
        ("question", pa.string()),
        ("relevant", pa.string()),
        ("found", pa.string()),
        ("hit", pa.float64()),
        ("ndcg", pa.float64()),
        ("reciprocal_rank", pa.float64()),
        ("embedder", pa.string()),
        ("table_version", pa.int64()),
        ("dataset", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)


class RefreshedDocuments(BaseModel):
    """What a refresh of a view of documents did. embedded: chunks with a new vector; kept: that were there already; removed: that are no more."""

    model_config = ConfigDict(frozen=True)

    view: str
    documents: int
    embedded: int
    kept: int
    removed: int
    embedder: str
    source: str


class Passage(BaseModel):
    """A chunk that was found. distance: from the question, 0 for the same direction."""

    model_config = ConfigDict(frozen=True)

    chunk: str
    document: str
    heading: str
    text: str
    distance: float


class Retrieved(BaseModel):
    """What was found for a question, nearest first, and in what: the view's embedder, and the version of its table."""

    model_config = ConfigDict(frozen=True)

    view: str
    question: str
    passages: list[Passage]
    embedder: str
    table_version: int | None
    at: datetime


@function(
    http=True,
    resources=Resources(num_cpus=1),
    timeout_s=4 * 3600,
    retries=Retries(max_attempts=2),
    max_concurrency=1,
)
def refresh_documents(
    view: str, documents: TableSnapshot, max_length: int = 1_200, threads: int = 1
) -> RefreshedDocuments:
    """Bring a view of chunks up to date with a table of documents: only chunks that are new or changed are embedded.

    view: applied, as `document_view` declares it. documents: a table with `document`, a name that is there once, and `text`.
    max_length: characters of a chunk. threads: of the embedder's engine. Safe to repeat, and to kill, at any time.
    Raises: UnknownDefinition; InvalidInput for a table or view of another form; EngineDown.
    """
    features = context().features()
    declared = _view(features, view)
    embedder = declared.indexes[0].text_model
    wanted = _chunks(context().store, documents, max_length)
    current = _current(features, view)
    new = [each for key, each in wanted.items() if current.get(key) != embedder]
    gone = [key for key, made_by in current.items() if made_by is not None and key not in wanted]
    shared = {"source": str(documents), "embedder": embedder}
    with _embedder(declared, threads) as embed:
        for at in range(0, len(new), _WRITTEN_AT_ONCE):
            part = new[at : at + _WRITTEN_AT_ONCE]
            vectors = embed(embedder, [f"{each.heading}\n{each.text}" for each in part])
            rows = [
                {"chunk": each.key, EMBEDDING: vector.tolist(), "document": each.document, **shared}
                | {"heading": each.heading, "text": each.text}
                for each, vector in zip(part, vectors, strict=True)
            ]
            _write(features, view, rows)
            report_progress(at + len(part), len(new), "chunks embedded")
    nothing = dict.fromkeys((EMBEDDING, "document", "heading", "text"))
    if gone:
        _write(features, view, [{"chunk": key, **nothing, **shared, "embedder": None} for key in gone])
    return RefreshedDocuments(
        view=view,
        documents=len({each.document for each in wanted.values()}),
        embedded=len(new),
        kept=len(wanted) - len(new),
        removed=len(gone),
        embedder=embedder,
        source=str(documents),
    )


@function(http=True, timeout_s=300)
def retrieve(view: str, question: str, k: int = 4) -> Retrieved:
    """Find the `k` chunks of a view that are nearest to a question, with what an answer's log needs to say where they are from.

    With a language model as embedder an engine is started for the call; ask its door for the vector and search by that where many ask.
    Raises: UnknownDefinition; InvalidInput; EngineDown.
    """
    features = context().features()
    with _embedder(_view(features, view), 1) as embed:
        return _retrieved(features, view, question, k, embed)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3_600)
def evaluate_retrieval(view: str, dataset: TableSnapshot, k: int = 4, threads: int = 1) -> RetrievalScores:
    """Look up the questions of a table and score what is found: hit, nDCG and reciprocal rank of the documents that are relevant.

    dataset: with `question`, and `relevant`, the name of a document or several as a JSON list. Each step is appended to the table
    `retrievals/{view}` with its scores. threads: of the embedder's engine.
    Raises: UnknownDefinition; EvaluationError, naming the row; EngineDown.
    """
    features, store = context().features(), context().store
    questions = list(_questions(Table(store, dataset.name).read(version=dataset.version)))
    steps: list[tuple[Retrieved, list[str], StepScore]] = []
    with _embedder(_view(features, view), threads) as embed:
        for question, relevant in questions:
            found = _retrieved(
                features, view, question, 4 * k, embed
            )  # several chunks may be of one document
            names = [each.document for each in found.passages]
            steps.append((found, relevant, score_step(names, relevant, k=k)))
    scores = score_retrieval([score for _, _, score in steps], k=k)
    Table(store, f"retrievals/{view}").append(_step_rows(steps, dataset))
    return scores


def _view(features: FeatureStore, name: str) -> FeatureView:
    view = features.get_feature_view(name)
    texts = {"document", "heading", "text", "source", "embedder"}
    if set(view.features) != texts | {EMBEDDING} or not view.indexes:
        raise InvalidInput(f"view={name!r} is no view of documents; declare it with document_view")
    return view


def _embedder(view: FeatureView, threads: int) -> Any:
    (length,) = (each.dtype.length for each in view.schema if isinstance(each.dtype, Vector))
    return embedder_of(view.indexes[0].text_model, length, threads=threads)


def _chunks(store: ObjectStore, documents: TableSnapshot, max_length: int) -> dict[str, Chunk]:
    table = Table(store, documents.name).read(version=documents.version)
    if missing := sorted({"document", "text"} - set(table.column_names)):
        raise InvalidInput(f"documents={documents} has columns {table.column_names}, and needs {missing}")
    rows = table.select(["document", "text"]).to_pylist()
    names = [each["document"] for each in rows]
    if twice := sorted({name for name in names if name is None or names.count(name) > 1}, key=str):
        raise InvalidInput(
            f"documents={documents}: {twice[0]!r} is there more than once, or null; names are unique"
        )
    return {
        each.key: each
        for row in rows
        for each in chunks_of(row["document"], row["text"] or "", max_length=max_length)
    }


def _current(features: FeatureStore, view: str) -> dict[str, str | None]:
    """Embedder of the newest row of each chunk; None of one that was removed."""
    table = features.offline_table(view)
    if not table.exists():
        return {}
    order = ["event_timestamp", "created_timestamp"]
    rows = pl.DataFrame(table.read(columns=["chunk", "embedder", *order]))
    newest = rows.sort(order).group_by("chunk").last()
    return dict(zip(newest["chunk"], newest["embedder"], strict=True))


def _write(features: FeatureStore, view: str, rows: Sequence[dict[str, Any]]) -> None:
    now = features.now()
    features.write_offline(
        view, [{**each, "event_timestamp": now, "created_timestamp": now} for each in rows]
    )


def _retrieved(features: FeatureStore, view: str, question: str, k: int, embed: Embedder) -> Retrieved:
    about = {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": view, "gen_ai.request.top_k": k}
    with span(f"retrieval {view}", **about):
        found = features.search(view, text=question, k=k, embed=embed)
    passages = [
        Passage(
            chunk=each.key["chunk"],
            distance=each.distance,
            **{name: each.features[name] for name in ("document", "heading", "text")},
        )
        for each in found.found
    ]
    return Retrieved(
        view=view,
        question=question,
        passages=passages,
        embedder=embed.name,
        table_version=found.table_version,
        at=found.at,
    )


def _questions(table: pa.Table) -> Iterator[tuple[str, list[str]]]:
    if missing := sorted({"question", "relevant"} - set(table.column_names)):
        raise EvaluationError(f"the questions have columns {table.column_names}, and need {missing}")
    for number, row in enumerate(table.select(["question", "relevant"]).to_pylist()):
        relevant = row["relevant"]
        if isinstance(relevant, str) and relevant.startswith("["):
            relevant = json.loads(relevant)
        names = [each for each in ([relevant] if isinstance(relevant, str) else relevant or ()) if each]
        if not row["question"] or not names:
            raise EvaluationError(f"row {number}: question or relevant is empty; leave such rows out")
        yield row["question"], names


def _step_rows(steps: Sequence[tuple[Retrieved, list[str], StepScore]], dataset: TableSnapshot) -> pa.Table:
    rows = [
        {
            "view": found.view,
            "question": found.question,
            "relevant": json.dumps(relevant),
            "found": json.dumps([[each.chunk, each.document, each.distance] for each in found.passages]),
            "hit": score.hit,
            "ndcg": score.ndcg,
            "reciprocal_rank": score.reciprocal_rank,
            "embedder": found.embedder,
            "table_version": found.table_version,
            "dataset": str(dataset),
            "at": found.at,
        }
        for found, relevant, score in steps
    ]
    return pa.Table.from_pylist(rows, _STEPS)
