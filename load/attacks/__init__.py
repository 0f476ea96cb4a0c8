"""Attacks on a running platform from outside, each of which must come to nothing: `python -m toque.load.attacks`.

A release runs them. They speak HTTP, gRPC and bytes, and import nothing of the platform but what runs loads and benchmarks.
"""
