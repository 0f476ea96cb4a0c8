"""Experiments and their runs with parameters, metrics and artifacts, and a search over them."""
