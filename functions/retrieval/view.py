"""Feature view that holds the chunks of documents with their vectors."""

from __future__ import annotations

from typing import Final

from toque.featurestore import Entity, FeatureView, Field, String, Vector, VectorIndex

__all__ = ["EMBEDDING", "WORDS", "document_view"]

WORDS: Final = "words"
"""Embedder that needs no model: words and their trigrams, hashed; texts that share words are near."""
EMBEDDING: Final = "embedding"


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
