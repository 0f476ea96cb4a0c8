"""Experiments and runs: parameters, metrics, artifacts, and a search over them."""
