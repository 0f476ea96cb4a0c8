"""Benchmarks of language models: their door, engines and batches."""
