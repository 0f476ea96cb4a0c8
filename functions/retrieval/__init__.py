"""Retrieval: documents become chunks with vectors in a feature view, which questions are looked up in.

The room knows the feature store, language models and their scores. It must not know who asks, nor what is done with what it finds.
"""

from toque.functions.retrieval.chunks import Chunk, chunks_of
from toque.functions.retrieval.scores import RetrievalScores, score_retrieval
from toque.functions.retrieval.view import WORDS, document_view

__all__ = ["WORDS", "Chunk", "RetrievalScores", "chunks_of", "document_view", "score_retrieval"]
