"""Verdicts on a load: histograms, objectives, and comparison of runs."""
