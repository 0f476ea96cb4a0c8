"""Vectors of texts by what a view names as its embedder: hashed words, or a language model; and views of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from toque.featurestore import Entity, FeatureView, Field, String, Vector, VectorIndex
from toque.functions.evaluation.language.answering import fetched, running_engine
from toque.functions.generative.engines import (
    EngineDown,
    EngineProcess,
    ask_embeddings,
    engine_environment,
    scratch_folder,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.telemetry import span
from toque.functions.stats.text import text_vectors
from toque.registry import InvalidInput

Vectors = npt.NDArray[np.float32]
_EMBEDDED_AT_ONCE: Final = 16
"""Texts of one request to an engine."""
WORDS: Final = "words"
"""Embedder that needs no model: words and their trigrams, hashed; texts that share words are near."""
EMBEDDING: Final = "embedding"


class Embedder:
    """Makes the vectors of a view of documents from texts. name: as the view has it; length: of the vectors."""

    def __init__(self, name: str, length: int, runner: asyncio.Runner, process: EngineProcess | None) -> None:
        self.name, self.length = name, length
        self._runner, self._process = runner, process

    def __call__(self, model: str, texts: Sequence[str]) -> Vectors:
        """Make the vectors of texts, (texts, length). model: must be the embedder. Raises: InvalidInput; EngineDown."""
        if model != self.name:
            raise InvalidInput(f"embedder {self.name!r} cannot make vectors of {model!r}; use the view's own")
        about: dict[str, Any] = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.request.model": model,
            "gen_ai.embeddings.dimension.count": self.length,
        }
        with span(f"embeddings {model}", **about):
            return self._vectors(texts)

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        if self._process is None:
            return text_vectors(texts, width=self.length).astype(np.float32)
        found = self._runner.run(_embedded(self._process, texts))
        if len(found) and found.shape[1] != self.length:
            raise InvalidInput(
                f"embedder {self.name!r} makes vectors of {found.shape[1]} numbers, and the view has {self.length}; "
                f"declare it with length={found.shape[1]}"
            )
        return found


@contextmanager
def embedder_of(name: str, length: int, *, threads: int = 1) -> Iterator[Embedder]:
    """Open what makes vectors for a `with` block; an engine of a language model runs for as long.

    name: `words`, or a version such as `smol@3`. Raises: InvalidInput for another; NotFound; EvaluationError; EngineDown.
    """
    with asyncio.Runner() as runner:
        if name == WORDS:
            yield Embedder(name, length, runner, None)
            return
        model, _, version = name.partition("@")
        if not version.isascii() or not version.isdigit():
            raise InvalidInput(
                f"embedder={name!r}: expected {WORDS!r}, or a version of a language model such as 'smol@3'"
            )
        registry = context().registry()
        with scratch_folder() as folder:
            asked = fetched(registry, registry.get_version(model, int(version)), folder, threads=threads)
            # whatever else the version does: this engine embeds alone, whole chunks and several at once
            settings = asked.spec.settings.model_copy(update={"task": "embed"})
            held = AsyncExitStack()
            try:
                running = running_engine(
                    replace(asked.spec, settings=settings), engine_environment(os.environ)
                )
                process = runner.run(held.enter_async_context(running))
                yield Embedder(name, length, runner, process)
            finally:
                runner.run(held.aclose())


async def _embedded(process: EngineProcess, texts: Sequence[str]) -> Vectors:
    vectors: list[list[float]] = []
    for at in range(0, len(texts), _EMBEDDED_AT_ONCE):
        status, document = await ask_embeddings(process, {"input": [*texts[at : at + _EMBEDDED_AT_ONCE]]})
        if not isinstance(document, dict):
            raise EngineDown(f"status {status}: {document!r:.200}; are chunks longer than its context?")
        vectors += [each["embedding"] for each in sorted(document["data"], key=lambda each: each["index"])]
    return np.array(vectors, np.float32)


def document_view(name: str, *, length: int, embedder: str = WORDS) -> FeatureView:
    """Declare a view of chunks, to be filled by `refresh_documents` and searched by `retrieve`.

    length: of the vectors. embedder: `words`, or a version of a language model such as `smol@3`, whose vectors it holds.
    A chunk that its document has no more stays with nulls, so that searches as of before still find it. `source` is the snapshot
    of the documents that a row was made from, `embedder` what made its vector.
    """
    texts = ("document", "heading", "text", "source", "embedder")
    return FeatureView(
        name,
        [Entity("chunk")],
        [Field(EMBEDDING, Vector(length)), *(Field(each, String) for each in texts)],
        indexes=[VectorIndex(EMBEDDING, text_model=embedder)],
    )


__all__ = ["EMBEDDING", "WORDS", "Embedder", "document_view", "embedder_of"]
