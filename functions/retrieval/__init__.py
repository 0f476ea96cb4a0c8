"""Retrieval: documents become chunks with vectors in a feature view, which questions are looked up in.

The room knows the feature store, language models and their scores. It must not know who asks, nor what is done with what it finds.
"""

from toque.functions.retrieval.embedding import WORDS, document_view
from toque.functions.retrieval.jobs import Chunk, RetrievalScores, chunks_of, score_retrieval

__all__ = ["WORDS", "Chunk", "RetrievalScores", "chunks_of", "document_view", "score_retrieval"]
