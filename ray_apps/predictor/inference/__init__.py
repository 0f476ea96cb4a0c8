"""Answering one inference request: features by key, the model's version, shadows, and the record."""
