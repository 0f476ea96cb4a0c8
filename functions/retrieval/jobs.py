"""Retrieval as functions: bring documents into a view, look a question up, and judge how well that works.

Documents are cut into chunks along their headings and paragraphs. A chunk's key is the digest of its document's name and its text, so
that one whose text did not change is the same wherever it stands, and needs no new vector. What was retrieved is scored by
hit, nDCG and reciprocal rank, with intervals.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, Field

from toque.featurestore import FeatureStore, FeatureView, Vector
from toque.featurestore.vectors import MOST
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import Interval
from toque.functions.retrieval.embedding import EMBEDDING, Embedder, embedder_of
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources, Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.run.log import report_progress
from toque.functions.runtime.telemetry import span
from toque.registry import InvalidInput, ObjectStore, Table, TableSnapshot

_RESAMPLES, _TAIL = 2_000, 2.5  # of the bootstrap; per cent beyond each end
_CHUNKS_A_DOCUMENT: Final = 4
"""Chunks that are searched for each document to be found, since several may be of one."""
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
DocumentView = Annotated[
    str, Field(description="Name of a feature view of chunks, applied as `document_view` declares it.")
]
EmbedderThreads = Annotated[
    int,
    Field(
        ge=1,
        le=1_024,
        description="Threads of the processor for the embedder's engine, if it is a language model.",
    ),
]


class RefreshedDocuments(BaseModel, frozen=True):
    """What a refresh of a view of documents did. embedded: chunks with a new vector; kept: that were there already; removed: that are no more."""

    view: str
    documents: int
    embedded: int
    kept: int
    removed: int
    embedder: str
    source: str


class Passage(BaseModel, frozen=True):
    """A chunk that was found. distance: from the question, 0 for the same direction."""

    chunk: str
    document: str
    heading: str
    text: str
    distance: float


class Retrieved(BaseModel, frozen=True):
    """What was found for a question, nearest first, and in what: the view's embedder, and the version of its table."""

    view: str
    question: str
    passages: list[Passage]
    embedder: str
    table_version: int | None
    at: datetime


class RetrievalScores(BaseModel, frozen=True):
    """Mean scores over questions, each with a 95 % bootstrap interval. k: places that were looked at."""

    questions: int
    k: int
    hit: Interval
    ndcg: Interval
    reciprocal_rank: Interval


@function(
    http=True,
    resources=Resources(num_cpus=1),
    timeout_s=4 * 3600,
    retries=Retries(max_attempts=2),
    max_concurrency=1,
)
def refresh_documents(
    view: DocumentView,
    documents: Annotated[
        TableSnapshot,
        Field(description="Table at one version, with `document`, a name that is there once, and `text`."),
    ],
    max_length: Annotated[
        int, Field(ge=1, le=1_000_000, description="Characters that a chunk has at most.")
    ] = 1_200,
    threads: EmbedderThreads = 1,
) -> RefreshedDocuments:
    """Bring a view of chunks up to date with a table of documents: only chunks that are new or changed are embedded.

    Safe to repeat, and to kill, at any time.
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
def retrieve(
    view: DocumentView,
    question: Annotated[str, Field(description="Text to which chunks are looked up.")],
    k: Annotated[int, Field(ge=1, le=MOST, description="Number of chunks to find, 1,000 at most.")] = 4,
) -> Retrieved:
    """Find the `k` chunks of a view that are nearest to a question, with what an answer's log needs to say where they are from.

    With a language model as embedder an engine is started for the call; ask its door for the vector and search by that where many ask.
    Raises: UnknownDefinition; InvalidInput; EngineDown.
    """
    features = context().features()
    with _embedder(_view(features, view), 1) as embed:
        return _retrieved(features, view, question, k, embed)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3_600)
def evaluate_retrieval(
    view: DocumentView,
    dataset: Annotated[
        TableSnapshot,
        Field(
            description=(
                "Table at one version, with `question`, and `relevant`, the name of a document "
                "or several as a JSON list."
            )
        ),
    ],
    k: Annotated[
        int,
        Field(
            ge=1,
            le=MOST // _CHUNKS_A_DOCUMENT,
            description="Number of documents, nearest first, that each question is scored by, 250 at most.",
        ),
    ] = 4,
    threads: EmbedderThreads = 1,
) -> RetrievalScores:
    """Look up the questions of a table and score what is found: hit, nDCG and reciprocal rank of the documents that are relevant.

    Each step is appended to the table `retrievals/{view}` with its scores.
    Raises: UnknownDefinition; EvaluationError, naming the row; EngineDown.
    """
    features, store = context().features(), context().store
    questions = list(_questions(Table(store, dataset.name).read(version=dataset.version)))
    steps: list[tuple[Retrieved, list[str], StepScore]] = []
    with _embedder(_view(features, view), threads) as embed:
        for question, relevant in questions:
            found = _retrieved(features, view, question, _CHUNKS_A_DOCUMENT * k, embed)
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


@dataclass(frozen=True, slots=True)
class StepScore:
    """Scores of what was found for one question. hit: whether anything relevant was found; ndcg, reciprocal_rank: how far up."""

    hit: float
    ndcg: float
    reciprocal_rank: float


def score_step(found: Sequence[str], relevant: Collection[str], *, k: int) -> StepScore:
    """Score what was found for one question, nearest first. relevant: what should be; each counts once, where it is first.

    nDCG with a gain of 1 for what is relevant: 1 if the first places have it all, in any order.
    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002.
    Raises: EvaluationError if nothing is relevant.
    """
    wanted = set(relevant)
    if not wanted:
        raise EvaluationError("nothing is relevant: leave out questions to which there is no answer")
    unique = list(dict.fromkeys(found))[:k]
    places = [place for place, each in enumerate(unique) if each in wanted]
    gain = sum(1 / np.log2(place + 2) for place in places)
    best = sum(1 / np.log2(place + 2) for place in range(min(len(wanted), k)))
    return StepScore(float(bool(places)), float(gain / best), 1 / (places[0] + 1) if places else 0.0)


def score_retrieval(steps: Sequence[StepScore], *, k: int, seed: int = 0) -> RetrievalScores:
    """Average the scores of questions. Raises: EvaluationError for none."""
    if not steps:
        raise EvaluationError("no questions to score retrieval by")
    values = np.array([(each.hit, each.ndcg, each.reciprocal_rank) for each in steps])  # [questions, 3]
    picked = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[picked].mean(axis=1), [_TAIL, 100 - _TAIL], axis=0)
    intervals = [
        Interval(estimate=float(mean), low=float(under), high=float(over))
        for mean, under, over in zip(values.mean(axis=0), low, high, strict=True)
    ]
    return RetrievalScores(
        questions=len(steps), k=k, hit=intervals[0], ndcg=intervals[1], reciprocal_rank=intervals[2]
    )


_HEADING: Final = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
_FENCE: Final = re.compile(r"^\s*(?:```|~~~)")
_KEY_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. key: by which it is known; heading: those that it stands under, from the first to the last."""

    key: str
    document: str
    heading: str
    text: str


def chunks_of(document: str, text: str, *, max_length: int = 1_200) -> list[Chunk]:
    """Cut the text of a document, in Markdown or plain, into chunks of at most `max_length` characters.

    Paragraphs under one heading share a chunk as long as they fit; blocks of code are kept whole; what is longer by itself is cut
    where words end. A text that stands twice under the same heading is one chunk.
    """
    found: dict[str, Chunk] = {}
    for heading, paragraphs in _sections(text):
        for piece in _packed(paragraphs, max_length):
            digest = hashlib.sha256(f"{document}\0{heading}\0{piece}".encode()).hexdigest()[:_KEY_LENGTH]
            found.setdefault(digest, Chunk(digest, document, heading, piece))
    return list(found.values())


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Headings that are in force, joined, and the paragraphs under them."""
    path: dict[int, str] = {}
    paragraphs: list[str] = []
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        found = None if fenced else _HEADING.match(line)
        if _FENCE.match(line):
            fenced = not fenced
        if found is None and (fenced or line.strip()):
            lines.append(line)
            continue
        if lines:
            paragraphs.append("\n".join(lines))
            lines = []
        if found is not None:
            if paragraphs:
                yield " > ".join(path.values()), paragraphs
                paragraphs = []
            level = len(found[1])
            path = {each: title for each, title in path.items() if each < level} | {level: found[2]}
    if lines:
        paragraphs.append("\n".join(lines))
    if paragraphs:
        yield " > ".join(path.values()), paragraphs


def _packed(paragraphs: list[str], most: int) -> Iterator[str]:
    held = ""
    for paragraph in paragraphs:
        for piece in _cut(paragraph, most):
            if held and len(held) + 2 + len(piece) > most:
                yield held
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held


def _cut(text: str, most: int) -> Iterator[str]:
    """Cut a text that is too long where a line or word ends, if it has such a place."""
    while len(text) > most:
        at = max(text.rfind("\n", 1, most + 1), text.rfind(" ", 1, most + 1))
        at = at if at > 0 else most
        yield text[:at].rstrip()
        text = text[at:].lstrip()
    if text:
        yield text


__all__ = [
    "Chunk",
    "Passage",
    "RefreshedDocuments",
    "RetrievalScores",
    "Retrieved",
    "StepScore",
    "chunks_of",
    "evaluate_retrieval",
    "refresh_documents",
    "retrieve",
    "score_retrieval",
    "score_step",
]
