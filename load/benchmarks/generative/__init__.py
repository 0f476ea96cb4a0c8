"""Benchmarks of language models: their door, conversations, adapters, batches and gate of answers."""
