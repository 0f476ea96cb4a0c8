"""Simulations that hold the statistics against their stated bounds."""
