"""Judging models: metrics, baselines and gates."""
