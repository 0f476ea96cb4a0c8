"""The example's steps: pages to a view, retrieval judged on the index's questions, and answers that say their sources.

The index of the documentation asks the questions: each row names the pages that answer it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from examples.capitals.steps import weights
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.retrieval import RetrievalScores, document_view
from toque.functions.retrieval.jobs import evaluate_retrieval, refresh_documents, retrieve
from toque.registry import Table, TableSnapshot, open_store

VIEW, MODEL, LENGTH, K = "docs", "answers", 2_048, 4
PROMPT: Final = Prompt.model_validate(
    {
        "messages": [
            {"role": "system", "content": "Answer in one sentence, from this text alone:\n\n{{ passages }}"}
        ],
        "variables": {"passages": {"max_length": 6_000}},
        "parameters": {"temperature": 0, "max_tokens": 60},
        "guardrails": {"before": [{"kind": "injection"}, {"kind": "length", "max_length": 500}]},
    }
)
"""Rules before look at the passages, too: a page that gives orders to the model is refused."""

DOCS: Final = Path(__file__).parents[2] / "docs"
INDEX: Final = "README.md"
_ROW: Final = re.compile(r"^\| (?P<question>[^|]+\?) \| (?P<answers>.+) \|$", re.MULTILINE)
_PAGE: Final = re.compile(r"\]\((?P<page>[\w/.-]+\.md)")


def prepared(context: Context) -> str:
    """Bring the pages into the view; only what changed since the last time is embedded. Returns what was done."""
    context.features().apply([document_view(VIEW, length=LENGTH)])
    table = Table(context.store, "answers/pages").overwrite(documents())
    done = refresh_documents(VIEW, table)
    return (
        f"{done.documents} pages: {done.embedded} chunks embedded, {done.kept} kept, {done.removed} removed"
    )


def judged(context: Context) -> RetrievalScores:
    """Score retrieval on the questions of the index; each step stands in the table `retrievals/docs`."""
    return evaluate_retrieval(VIEW, Table(context.store, "answers/questions").overwrite(questions()), k=K)


def answer(context: Context, asked: list[str]) -> list[dict[str, Any]]:
    """Answer questions by a language model from what is retrieved, which is kept with each answer."""
    registry = context.registry()
    registry.create_model(MODEL, exist_ok=True)
    if not registry.list_versions(MODEL):
        settings = EngineSettings(context_length=2_048, slots=2)
        register_generative(registry, MODEL, weights=weights(), settings=settings, prompt=PROMPT)
    rows = _asked(context, asked)
    done = predict_batch(
        MODEL, rows, version=1, keep=["retrieved"], output=f"answers/{rows.version}", threads=2
    )
    found = Table(context.store, done.table.name).read().sort_by("row").to_pylist()
    return [{"question": question, **row} for question, row in zip(asked, found, strict=True)]


def main() -> None:
    """Run all steps, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m examples.answers", allow_abbrev=False)
    parser.add_argument("--home", type=Path, help="folder of the store (default: a temporary one)")
    parser.add_argument("--questions", type=int, default=3, help="how many the language model answers")
    given = parser.parse_args()
    with _home(given.home) as home, use_context(_context(home)) as context:
        _say(prepared(context))
        scores = judged(context)
        _say(
            f"{scores.questions} questions of the index: the right page among {scores.k} in {scores.hit.estimate:.0%} "
            f"({scores.hit.low:.0%} to {scores.hit.high:.0%}), nDCG {scores.ndcg.estimate:.2f}"
        )
        asked = questions()["question"].to_pylist()[: given.questions]
        for each in answer(context, asked) if asked else []:
            pages = sorted({name for _, name, _ in json.loads(each["retrieved"])})
            _say(f"\n{each['question']}\n{each['answer'] or each['refused']}\n  from {', '.join(pages)}")


def _asked(context: Context, asked: list[str]) -> TableSnapshot:
    found = [retrieve(VIEW, question, k=K) for question in asked]
    passages = ["\n\n".join(each.text for each in one.passages)[:5_000] for one in found]
    rows = {
        "prompt": asked,
        "variables": [json.dumps({"passages": each}) for each in passages],
        "retrieved": [
            json.dumps([(each.chunk, each.document, each.distance) for each in one.passages]) for one in found
        ],
    }
    return Table(context.store, "answers/asked").overwrite(pa.table(rows))


def _context(home: Path) -> Context:
    url = f"file://{home.resolve()}"
    return Context(store=open_store(url), store_url=url)


@contextmanager
def _home(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="toque-answers-") as folder:
        yield Path(folder)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def documents(folder: Path = DOCS) -> pa.Table:
    """Read the pages of the documentation, without the index that holds the questions."""
    pages = [each for each in sorted(folder.glob("*.md")) if each.name != INDEX]
    return pa.table({"document": [each.name for each in pages], "text": [each.read_text() for each in pages]})


def questions(folder: Path = DOCS) -> pa.Table:
    """Read the questions of the index, each with the pages that answer it."""
    names = {each.name for each in folder.glob("*.md")}
    found = [
        (row["question"], pages[0])
        for row in _ROW.finditer((folder / INDEX).read_text())
        if (pages := [each for each in _PAGE.findall(row["answers"]) if each in names])
    ]
    return pa.table({"question": [each for each, _ in found], "relevant": [page for _, page in found]})


__all__ = ["DOCS", "answer", "documents", "judged", "main", "prepared", "questions"]
