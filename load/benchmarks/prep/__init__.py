"""Benchmarks of what prepares data: features, streams, sources, the log, training sets and vectors."""
