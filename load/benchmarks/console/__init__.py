"""Benchmarks of the console: its pages over a store of size, and what viewers cost."""
