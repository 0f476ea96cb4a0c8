"""Answers questions about this project's own documentation: chunks in a vector view, retrieval that is judged, a small language model."""
