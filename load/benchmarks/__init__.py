"""Benchmarks of single parts, each with its ratio to a peer or a floor in the same run."""
